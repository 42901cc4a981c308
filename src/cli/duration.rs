//! Durations on the command line.

pub(super) use crate::duration::parse;
