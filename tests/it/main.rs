//! The promises of subledger, each held against a real PostgreSQL and over real HTTP. One binary, so that one private
//! PostgreSQL serves all; a database each, so that the tests run side by side.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod support;

mod accounts;
mod admin;
mod asking;
mod bad_input;
mod binary;
mod bounds;
mod browser;
mod cancel;
mod converge;
mod corpus;
mod entitlement;
mod events;
mod faults;
mod health;
mod import;
mod load;
mod logs;
mod metrics;
mod migrations;
mod model;
mod openapi;
mod openapi_properties;
mod ordering;
mod parking;
mod postgres;
mod prune;
mod races;
mod reconcile;
mod replay;
mod replay_command;
mod replicas;
mod service;
mod shapes;
mod shortcut;
mod stop;
mod strangers;
mod stripe_api;
mod thin;
mod together;
mod unsafe_code;
mod variants;
mod webhook;
