//! Keeps an application's subscription table exactly in step with Stripe.
//!
//! - [`postgres`]: a private PostgreSQL server, for when no database is given.

pub mod postgres;
