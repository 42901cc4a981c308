//! What the tests share: a database each, a server each, events to deliver, and a stand-in for Stripe's API.

pub mod app;
pub mod binary;
pub mod browser;
pub mod database;
pub mod events;
pub mod job;
pub mod proxy;
pub mod stripe;
pub mod world;

pub use app::{Answer, Settings, TestApp};
pub use browser::Browser;
pub use events::{Event, fixture, fixture_json};
pub use stripe::StripeApi;
