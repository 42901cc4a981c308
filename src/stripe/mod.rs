//! What Stripe says, read into our words: events, subscriptions, checkouts and invoices of every API version, and
//! the API itself. Knows nothing of HTTP requests to us, of SQL, or of what is done with it.

pub mod api;
mod checkout;
mod event;
mod features;
mod imported;
mod invoice;
mod item;
mod json;
mod jsonb;
mod numbers;
mod object;
pub mod redact;
pub mod signature;
mod subscription;
pub mod thin;
pub mod trust;

pub use checkout::Checkout;
pub use event::{Event, InvalidPayload, Kind, NAMED_TYPES, handled_types, subscription_types};
pub use features::Feature;
pub use imported::{IMPORTED, Newest};
pub use invoice::{Invoice, InvoiceStatus};
pub use item::SubscriptionItem;
pub use json::EARLIEST_TIME;
pub use object::Object;
pub use subscription::{FINAL_STATUSES, PlanName, PricePlans, Subscription, SubscriptionError};
