//! PostgreSQL as its users have it: with TLS, behind PgBouncer, with a standby that takes over.

mod failover;
pub mod grants;
mod hosts;
mod migrating;
mod pgbouncer;
mod reading;
mod refusals;
mod schemas;
mod tls;
mod upgrade;
