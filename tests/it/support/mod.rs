//! What the tests share: a database each, a server each, events to deliver, and a stand-in for Stripe's API.

pub mod app;
pub mod binary;
pub mod browser;
pub mod certificates;
pub mod cluster;
pub mod database;
pub mod document;
pub mod events;
pub mod job;
pub mod pgbouncer;
pub mod proxy;
pub mod raw;
pub mod receiver;
pub mod relay;
pub mod schema;
pub mod simulation;
pub mod stripe;
pub mod stripe_endpoints;
pub mod world;

pub use app::{Answer, SWEPT, Settings, TestApp};
pub use browser::Browser;
pub use document::Document;
pub use events::{Event, fixture, fixture_json};
pub use raw::Raw;
pub use stripe::StripeApi;
