//! The promises of subledger, each held against a real PostgreSQL and over real HTTP. One binary, so that one private
//! PostgreSQL serves all; a database each, so that the tests run side by side.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod support;

mod accounts;
mod admin;
mod asking;
mod bad_input;
mod batches;
mod binary;
mod bounds;
mod browser;
mod cancel;
mod changes;
mod converge;
mod corpus;
mod deploy;
mod disconnects;
mod doctor;
mod entitlement;
mod events;
mod faults;
mod features;
mod health;
mod import;
mod items;
mod load;
mod local_rows;
mod logs;
mod lookups;
mod metrics;
mod migrations;
mod model;
mod openapi;
mod openapi_properties;
mod ordering;
mod parking;
mod personal_data;
mod plans;
mod postgres;
mod project;
mod prune;
mod races;
mod reconcile;
mod reconciler;
mod replay;
mod replay_command;
mod replicas;
mod service;
mod setup;
mod shapes;
mod simulate;
mod startup;
mod stop;
mod strangers;
mod stripe_api;
mod thin;
mod ties;
mod together;
mod trust;
mod unsafe_code;
mod upgrade;
mod variants;
mod versions;
mod webhook;
