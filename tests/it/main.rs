//! The promises of subledger, each held against a real PostgreSQL and over real HTTP. One binary, so that one private
//! PostgreSQL serves all; a database each, so that the tests run side by side.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

#[allow(dead_code, reason = "what is here for later tests")]
mod support;

mod asking;
mod bad_input;
mod binary;
mod cancel;
mod converge;
mod health;
mod import;
mod migrations;
mod model;
mod ordering;
mod parking;
mod prune;
mod races;
mod reconcile;
mod replay;
mod replay_command;
mod service;
mod webhook;
