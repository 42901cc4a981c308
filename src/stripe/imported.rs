//! A subscription that was read from Stripe's list, as a record like an event: what `import` applies.
//!
//! No event of Stripe's caused the reading, so the record has to say what its state counts as of; see
//! [`Event::imported`].

use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::api::Fetched;
use super::{Event, InvalidPayload, json};
use crate::stripe::signature::Verified;

/// The type of the record. None of Stripe's begins like that.
pub const IMPORTED: &str = "subledger.subscription.imported";

/// The newest that Stripe had told of one subscription before its state was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Newest {
    /// The second of the newest event.
    pub created: DateTime<Utc>,
    /// The events of that second.
    pub event_ids: Vec<String>,
}

impl Event {
    /// The record of a state that was read from Stripe *after* `newest` had been read from Stripe's event list, and
    /// where the part of that list that was read began at `list_began` (no event at all: `None`).
    ///
    /// What the state counts as of decides what becomes of the real events, whether they come before or after it:
    ///
    /// - **The newest listed event of this subscription**, where there is one. Its change is in the state, because the
    ///   state was read later. So every event of an earlier second is older than the state, and loses; every event
    ///   of a later second is one that had not been listed, and wins. Such a one may be in the state already; then
    ///   whatever followed it had not been listed either, is still to be delivered, and wins in its turn. Of the same
    ///   second, what had been listed is older than the state ([`Event::covers`]); the rest is a tie like any other.
    /// - Else **the time at which that part began**, or the subscription's own `created` if that is later: it has not
    ///   changed since, or there would be an event. What is older (a failed event of ours, replayed after weeks) loses;
    ///   what comes from then on wins.
    ///
    /// All of these are `created` times of Stripe's. Neither this machine's clock nor that of Stripe's web servers
    /// would do: an event is stamped before its change can be read, so a state "as of the response" could be without
    /// a change whose event bears an earlier second, and would make that event stale.
    ///
    /// The id says what was read: the same state after the same event is the same record, and a second import finds
    /// it recorded.
    ///
    /// # Errors
    /// Where the object has no id, or one of no use.
    pub fn imported(
        subscription: &Fetched,
        connect_account: Option<&str>,
        newest: Option<&Newest>,
        list_began: Option<DateTime<Utc>>,
    ) -> Result<Self, InvalidPayload> {
        let covers = newest.map(|newest| newest.event_ids.as_slice()).unwrap_or_default();
        let as_of = match newest {
            Some(newest) => Some(newest.created),
            None => {
                subscription.object().get("created").and_then(Value::as_i64).and_then(json::timestamp).max(list_began)
            }
        };
        let read = json!([connect_account, subscription.object(), covers]);
        Self::record(subscription, connect_account, as_of, covers, &read)
    }

    /// The record of a state that Stripe showed at `as_of`, by Stripe's clock: what `serve` applies for a subscription
    /// that is overdue. Events of that second and before are older.
    ///
    /// # Errors
    /// Where the object has no id, or one of no use.
    pub fn observed(
        subscription: &Fetched,
        connect_account: Option<&str>,
        as_of: DateTime<Utc>,
    ) -> Result<Self, InvalidPayload> {
        let read = json!([connect_account, subscription.object(), as_of.timestamp()]);
        Self::record(subscription, connect_account, Some(as_of), &[], &read)
    }

    /// `read` is what makes the record another one than those of other readings.
    fn record(
        subscription: &Fetched,
        connect_account: Option<&str>,
        as_of: Option<DateTime<Utc>>,
        covers: &[String],
        read: &Value,
    ) -> Result<Self, InvalidPayload> {
        let object = subscription.object();
        let id = subscription.id().ok_or(InvalidPayload::NotAnEvent("id"))?;
        let mut record = json!({
            "id": format!("import_{id}_{}", &hex::encode(Sha256::digest(read.to_string()))[..16]),
            "object": "event",
            "type": IMPORTED,
            "created": as_of.map(|as_of| as_of.timestamp()),
            "livemode": object.get("livemode"),
            "data": {"object": object, "covers": covers},
        });
        if let Some(account) = connect_account {
            record["account"] = account.into();
        }
        Self::parse(&Verified::from_stripes_api(record.to_string()))
    }

    /// Whether this is the record of a state that was read after Stripe had listed the event `id`.
    pub fn covers(&self, id: &str) -> bool {
        let covers =
            || self.data()["covers"].as_array().is_some_and(|covered| covered.iter().any(|covered| covered == id));
        self.event_type == IMPORTED && covers()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stripe::Kind;

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(seconds, 0).unwrap()
    }

    fn read(object: Value) -> Fetched {
        serde_json::from_value(object).unwrap()
    }

    #[test]
    fn the_state_counts_as_of_the_newest_listed_event() {
        let subscription = read(json!({"id": "sub_1", "status": "active", "created": 100, "livemode": true}));
        let newest = Newest { created: at(500), event_ids: vec!["evt_1".to_owned()] };
        let event = Event::imported(&subscription, Some("acct_1"), Some(&newest), Some(at(300))).unwrap();
        assert_eq!(event.created, Some(at(500)));
        assert!(event.covers("evt_1") && !event.covers("evt_2"));
        assert_eq!((event.kind, event.livemode), (Kind::SubscriptionChanged, true));
        assert_eq!(event.connect_account.as_deref(), Some("acct_1"));
        assert_eq!(event.subscription_id.as_deref(), Some("sub_1"));
    }

    #[test]
    fn without_an_event_it_counts_as_of_the_lists_beginning_or_the_birth() {
        let created = |created: i64, list_began| {
            let subscription = read(json!({"id": "sub_1", "status": "active", "created": created}));
            Event::imported(&subscription, None, None, list_began).unwrap().created
        };
        assert_eq!(created(100, Some(at(300))), Some(at(300)));
        assert_eq!(created(400, Some(at(300))), Some(at(400)));
        assert_eq!(created(100, None), Some(at(100)));
    }

    #[test]
    fn the_same_state_is_the_same_record_whenever_the_list_began() {
        let id = |status: &str, list_began| {
            let subscription = read(json!({"id": "sub_1", "status": status, "created": 100}));
            Event::imported(&subscription, None, None, Some(at(list_began))).unwrap().id
        };
        assert_eq!(id("active", 300), id("active", 400));
        assert_ne!(id("active", 300), id("past_due", 300));
    }
}
