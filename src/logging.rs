//! The log: one line an entry, as text or as JSON. Whatever an entry holds, it cannot start a second line.

use std::fmt::Write as _;
use std::io::{self, Write};

use chrono::{SecondsFormat, Utc};
use log::Record;
use log::kv::{self, Key, Value, VisitSource};
use serde_json::Map;

use crate::config::LogFormat;

/// Starts logging to standard error. A second call changes nothing.
pub fn init(format: LogFormat, filter: &str) {
    let mut builder = env_logger::Builder::new();
    builder.parse_filters(filter);
    match format {
        LogFormat::Text => builder.format(write_text::<env_logger::fmt::Formatter>),
        LogFormat::Json => builder.format(write_json::<env_logger::fmt::Formatter>),
    };
    // Fails where there is a logger already, as in tests; that one then serves.
    builder.try_init().ok();
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
    let line = line.replace(char::is_control, "\u{fffd}");
    writeln!(out, "{} {:5} {} {line}", now(), record.level(), record.target())
}

fn write_json<W: Write>(out: &mut W, record: &Record<'_>) -> io::Result<()> {
    let mut entry = Map::new();
    entry.insert("time".to_owned(), now().into());
    entry.insert("level".to_owned(), record.level().as_str().to_lowercase().into());
    entry.insert("target".to_owned(), record.target().into());
    entry.insert("message".to_owned(), record.args().to_string().into());
    entry.extend(fields(record));
    writeln!(out, "{}", serde_json::Value::Object(entry))
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
    fn an_entry_is_one_line_whatever_it_holds() {
        for format in [LogFormat::Text, LogFormat::Json] {
            let line = written(format, format_args!("a\nb\u{1b}[31m"));
            assert_eq!(line.matches('\n').count(), 1, "{line}");
            assert!(!line.contains('\u{1b}'), "{line}");
        }
        let entry: serde_json::Value = serde_json::from_str(&written(LogFormat::Json, format_args!("done"))).unwrap();
        assert_eq!(entry["message"], "done");
        assert_eq!(entry["outcome"], "applied");
    }
}
