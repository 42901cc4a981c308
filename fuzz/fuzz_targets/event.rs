#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| drop(subledger_fuzz::event::hold(data)));
