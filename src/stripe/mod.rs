//! What Stripe says, read into our words: events, subscriptions, checkouts and invoices of every API version, and
//! the API itself. Knows nothing of HTTP requests to us, of SQL, or of what is done with it.

pub mod api;
mod checkout;
mod event;
mod imported;
mod invoice;
mod json;
mod jsonb;
mod numbers;
mod object;
pub mod signature;
mod subscription;
pub mod thin;

pub use checkout::Checkout;
pub use event::{Event, InvalidPayload, Kind, NAMED_TYPES, handled_types, subscription_types};
pub use imported::{IMPORTED, Newest};
pub use invoice::{Invoice, InvoiceStatus};
pub use object::Object;
pub use subscription::{FINAL_STATUSES, PricePlans, Subscription, SubscriptionError};
