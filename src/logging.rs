//! The log: one line an entry, as text or as JSON. Whatever an entry holds, it cannot start a second line.

use std::fmt::{Display, Write as _};
use std::io::{self, Write};
use std::panic::PanicHookInfo;

use chrono::{SecondsFormat, Utc};
use log::kv::{self, Key, Value, VisitSource};
use log::{Level, Log, Metadata, Record};
use serde_json::Map;

use crate::config::LogFormat;

/// Starts logging to standard error, panics included. A second call changes nothing.
pub fn init(format: LogFormat, filter: &str) {
    let mut builder = env_logger::Builder::new();
    builder.parse_filters(filter);
    match format {
        LogFormat::Text => builder.format(write_text::<env_logger::fmt::Formatter>),
        LogFormat::Json => builder.format(write_json::<env_logger::fmt::Formatter>),
    };
    let logger = builder.build();
    let most = logger.filter();
    // Fails if there is a logger already, as in tests; that one then serves.
    if log::set_boxed_logger(Box::new(Discreet(logger))).is_ok() {
        log::set_max_level(most);
        std::panic::set_hook(Box::new(log_panic));
    }
}

/// Writes an entry whatever the filter says, in the log's own format.
pub fn write_unfiltered(format: LogFormat, level: Level, message: impl Display) {
    let args = format_args!("{message}");
    let record = Record::builder().args(args).level(level).target(env!("CARGO_CRATE_NAME")).build();
    let mut out = io::stderr().lock();
    let written = match format {
        LogFormat::Text => write_text(&mut out, &record),
        LogFormat::Json => write_json(&mut out, &record),
    };
    // If standard error is closed, nobody reads the log.
    written.ok();
}

/// One entry for a panic. A message with values in it is left out: they may be a part of a payload.
fn log_panic(info: &PanicHookInfo<'_>) {
    let location = info.location().map(ToString::to_string).unwrap_or_default();
    let message = info.payload().downcast_ref::<&str>().copied().unwrap_or("(a message with values is not logged)");
    log::error!(location; "a thread panicked: {message}");
}

/// Keeps other crates from saying too much, whatever the filter asks for. At `debug` and `trace` the database's driver
/// would show the parameters of every statement, payloads among them.
struct Discreet<L>(L);

impl<L: Log> Log for Discreet<L> {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        needed_level(metadata)
            .is_some_and(|level| self.0.enabled(&Metadata::builder().level(level).target(metadata.target()).build()))
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            self.0.log(record);
        }
    }

    fn flush(&self) {
        self.0.flush();
    }
}

/// The level at which the filter must let a target through for an entry to be logged; `None` if it never is.
fn needed_level(metadata: &Metadata<'_>) -> Option<Level> {
    let (level, target) = (metadata.level(), metadata.target());
    if target.split("::").next() == Some(env!("CARGO_CRATE_NAME")) {
        return Some(level);
    }
    // Anybody can cause these errors, by sending bytes that are not HTTP.
    let is_about_a_client = target.starts_with("actix_http::h1::");
    match level {
        Level::Debug | Level::Trace => None,
        Level::Info => Some(Level::Debug),
        Level::Error | Level::Warn if is_about_a_client => Some(Level::Debug),
        Level::Error | Level::Warn => Some(level),
    }
}

fn now() -> String {
    Utc::now().to_rfc3339_opts(SecondsFormat::Millis, true)
}

fn write_text<W: Write>(out: &mut W, record: &Record<'_>) -> io::Result<()> {
    let mut line = record.args().to_string();
    for (key, value) in fields(record) {
        // Writing to a string does not fail.
        write!(line, " {key}={}", value.as_str().map_or_else(|| value.to_string(), str::to_owned)).ok();
    }
    let line = line.replace(is_for_terminals, "\u{fffd}");
    writeln!(out, "{} {:5} {} {line}", now(), record.level(), record.target())
}

fn write_json<W: Write>(out: &mut W, record: &Record<'_>) -> io::Result<()> {
    let mut entry = Map::new();
    entry.insert("time".to_owned(), now().into());
    entry.insert("level".to_owned(), record.level().as_str().to_lowercase().into());
    entry.insert("target".to_owned(), record.target().into());
    entry.insert("message".to_owned(), record.args().to_string().into());
    entry.extend(fields(record));
    let mut line = String::new();
    for char in serde_json::Value::Object(entry).to_string().chars() {
        // JSON lets these stand as they are within a string. Writing to a string does not fail.
        if is_for_terminals(char) {
            write!(line, "\\u{:04x}", u32::from(char)).ok();
        } else {
            line.push(char);
        }
    }
    writeln!(out, "{line}")
}

/// Whether a character could move a terminal's cursor, or be taken for the end of a line.
fn is_for_terminals(char: char) -> bool {
    char.is_control() || matches!(char, '\u{2028}' | '\u{2029}')
}

fn fields(record: &Record<'_>) -> Map<String, serde_json::Value> {
    struct Collect(Map<String, serde_json::Value>);
    impl<'kvs> VisitSource<'kvs> for Collect {
        fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), kv::Error> {
            let value = value.to_u64().map_or_else(|| value.to_string().into(), serde_json::Value::from);
            self.0.insert(key.to_string(), value);
            Ok(())
        }
    }
    let mut collect = Collect(Map::new());
    // Our visitor does not fail.
    record.key_values().visit(&mut collect).ok();
    collect.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(format: LogFormat, message: std::fmt::Arguments<'_>) -> String {
        let fields = [("event_id", "evt_1\nforged"), ("outcome", "applied")];
        let record = Record::builder().args(message).target("t").level(log::Level::Info).key_values(&fields).build();
        let mut out = Vec::new();
        match format {
            LogFormat::Text => write_text(&mut out, &record),
            LogFormat::Json => write_json(&mut out, &record),
        }
        .unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn other_crates_say_no_more_than_they_should() {
        let enabled = |filter: &str, level: Level, target: &str| {
            let logger = Discreet(env_logger::Builder::new().parse_filters(filter).build());
            logger.enabled(&Metadata::builder().level(level).target(target).build())
        };
        for (filter, level, target, expected) in [
            ("info", Level::Info, "subledger::http::webhook", true),
            ("info", Level::Info, "actix_server::builder", false),
            ("info", Level::Error, "actix_server::accept", true),
            ("info", Level::Error, "actix_http::h1::dispatcher", false),
            ("debug", Level::Error, "actix_http::h1::dispatcher", true),
            ("trace,tokio_postgres=trace", Level::Trace, "subledger::http::webhook", true),
            ("trace,tokio_postgres=trace", Level::Info, "actix_server::builder", true),
            ("trace,tokio_postgres=trace", Level::Debug, "tokio_postgres::query", false),
            ("trace,tokio_postgres=trace", Level::Trace, "subledger_but_another", false),
        ] {
            assert_eq!(enabled(filter, level, target), expected, "{filter} {level} {target}");
        }
    }

    #[test]
    fn an_entry_is_one_line_whatever_it_holds() {
        for format in [LogFormat::Text, LogFormat::Json] {
            let line = written(format, format_args!("a\nb\u{1b}[31m\u{7f}\u{85}\u{9b}\u{2028}"));
            let line = line.strip_suffix('\n').unwrap();
            assert!(!line.contains(is_for_terminals), "{line:?}");
        }
        let entry = written(LogFormat::Json, format_args!("\u{9b}\u{2029}é\\"));
        let entry: serde_json::Value = serde_json::from_str(&entry).unwrap();
        assert_eq!(entry["message"], "\u{9b}\u{2029}é\\");
        let entry: serde_json::Value = serde_json::from_str(&written(LogFormat::Json, format_args!("done"))).unwrap();
        assert_eq!(entry["message"], "done");
        assert_eq!(entry["outcome"], "applied");
    }
}
