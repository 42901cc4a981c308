//! One table: a line for each figure, a column for each number of rows.

use std::fmt;
use std::time::Duration;

use anyhow::{Context, Result};

/// What was measured with one number of rows: names and figures, in order.
#[derive(Debug, Default)]
pub struct Column(Vec<(String, String)>);

impl Column {
    pub fn add(&mut self, name: String, figure: String) {
        self.0.push((name, figure));
    }

    /// Adds the middle and the slow end of some latencies, of which there must be one.
    pub fn latency(&mut self, name: &str, mut latencies: Vec<Duration>) -> Result<()> {
        latencies.sort_unstable();
        let at = |percent| latencies.get(latencies.len() * percent / 100).context("nothing was measured");
        let millis = |latency: &Duration| latency.as_secs_f64() * 1000.0;
        let figure = format!("{:.1}, {:.1}", millis(at(50)?), millis(at(99)?));
        self.add(format!("{name}: p50, p99 ms"), figure);
        Ok(())
    }
}

/// What the columns count, and the columns.
#[derive(Debug)]
pub struct Report(&'static str, Vec<(u64, Column)>);

impl Report {
    pub fn new(what: &'static str) -> Self {
        Self(what, Vec::new())
    }

    pub fn add(&mut self, rows: u64, column: Column) {
        self.1.push((rows, column));
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((_, first)) = self.1.first() else {
            return Ok(());
        };
        write!(f, "| {} |", self.0)?;
        for (rows, _) in &self.1 {
            write!(f, " {rows} |")?;
        }
        writeln!(f, "\n| --- |{}", " ---: |".repeat(self.1.len()))?;
        for (name, _) in &first.0 {
            write!(f, "| {name} |")?;
            for (_, column) in &self.1 {
                let figure = column.0.iter().find(|(other, _)| other == name).map_or("", |(_, figure)| figure.as_str());
                write!(f, " {figure} |")?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}
