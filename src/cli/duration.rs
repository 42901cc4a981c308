//! Durations as people write them.

pub(super) use crate::duration::parse;
