//! What the long measurements share: a private PostgreSQL, the real server, events of their own, and a plain client.

#![allow(dead_code, reason = "each measurement uses its part")]

pub mod client;
pub mod database;
pub mod events;
pub mod fill;
pub mod server;
