//! What must hold of any bytes at all, as functions that panic where it does not. The fuzzer runs them here; on the
//! stable toolchain `tests/it/corpus.rs` does, over the corpus and small changes to it.

pub mod event;
mod json;
pub mod projection;
pub mod signature;
