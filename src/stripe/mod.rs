//! What Stripe says, read into our words: events, subscriptions, checkouts and invoices of every API version, and
//! the API itself. Knows nothing of HTTP requests to us, of SQL, or of what is done with it.

pub mod api;
mod checkout;
mod event;
mod invoice;
mod json;
mod subscription;

pub use checkout::Checkout;
pub use event::{Event, InvalidPayload, Kind};
pub use invoice::{Invoice, InvoiceStatus};
pub use subscription::{PricePlans, Subscription, SubscriptionError};
