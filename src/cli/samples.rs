//! The samples of `send`: events as Stripe sends them, with current dates and ids of their own.

use chrono::{DateTime, Days, NaiveTime, Utc};
use serde_json::Value;

macro_rules! samples {
    ($($name:literal),* $(,)?) => {
        /// The samples, by name: one life of one subscription, in order.
        const SAMPLES: &[(&str, &str)] = &[$(($name, include_str!(concat!("../samples/", $name, ".json")))),*];
    };
}

samples!(
    "customer.subscription.created",
    "invoice.paid",
    "checkout.session.completed",
    "customer.subscription.updated",
    "customer.subscription.trial_will_end",
    "invoice.payment_failed",
    "customer.subscription.paused",
    "customer.subscription.deleted",
);

/// The word in the samples' ids that is replaced.
const WORD: &str = "_Sample";

/// Integers from here on are times in the samples: seconds since 1970.
const FIRST_TIME: i64 = 1_500_000_000;

/// The samples' names, in the order of one subscription's life.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    SAMPLES.iter().map(|(name, _)| *name)
}

/// The sample with its times moved so that it happened yesterday, and with `life` in its ids; `None` if there is no
/// such sample.
///
/// The samples of one life belong to one customer and one subscription, and their `created` are in their order. Prices
/// and products keep their ids, so that `PRICE_PLANS` can name them.
pub(super) fn sample(name: &str, life: &str, now: DateTime<Utc>) -> Option<Vec<u8>> {
    let (index, (_, text)) = SAMPLES.iter().enumerate().find(|(_, (sample, _))| *sample == name)?;
    let mut event: Value = serde_json::from_str(text).ok()?;
    let yesterday = now.date_naive().checked_sub_days(Days::new(1))?.and_time(NaiveTime::MIN).and_utc();
    let created = yesterday.timestamp() + i64::try_from(index).ok()?;
    let shift = created - event.get("created")?.as_i64()?;
    renew(&mut event, shift, &format!("{WORD}{life}"));
    serde_json::to_vec(&event).ok()
}

/// The life of a send without `--life`: that of the day. So a sample that is sent twice is a duplicate, as a
/// redelivery is, and on the next day it is new.
pub(super) fn life_of_the_day(now: DateTime<Utc>) -> String {
    now.format("%Y%m%d").to_string()
}

fn renew(value: &mut Value, shift: i64, word: &str) {
    match value {
        Value::Object(members) => members.values_mut().for_each(|value| renew(value, shift, word)),
        Value::Array(elements) => elements.iter_mut().for_each(|value| renew(value, shift, word)),
        Value::String(text) if !text.starts_with("price_") && !text.starts_with("prod_") => {
            *text = text.replace(WORD, word);
        }
        Value::Number(number) => {
            if let Some(time) = number.as_i64().filter(|number| *number >= FIRST_TIME) {
                *number = (time + shift).into();
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: &str, life: &str, now: &str) -> Value {
        serde_json::from_slice(&sample(name, life, now.parse().unwrap()).unwrap()).unwrap()
    }

    #[test]
    fn samples_are_of_yesterday_and_in_their_order() {
        let now: DateTime<Utc> = "2030-05-06T07:08:09Z".parse().unwrap();
        let mut last = 0;
        for name in names() {
            let event = read(name, "x", "2030-05-06T07:08:09Z");
            let created = event["created"].as_i64().unwrap();
            assert!(created > last && (now.timestamp() - 200_000..now.timestamp()).contains(&created), "{name}");
            last = created;
        }
        let item = read(names().next().unwrap(), "x", "2030-05-06T07:08:09Z");
        let item = &item["data"]["object"]["items"]["data"][0];
        assert_eq!(item["price"]["id"], "price_SampleTeamMonthly0001");
        assert!(item["current_period_end"].as_i64().unwrap() > now.timestamp());
    }

    #[test]
    fn a_life_has_ids_of_its_own_and_one_subscription() {
        let now = "2030-05-06T07:08:09Z";
        let created = read("customer.subscription.created", "one", now);
        assert_eq!(created, read("customer.subscription.created", "one", now));
        assert_eq!(created["data"]["object"]["id"], "sub_SampleoneSubscription0001");
        let deleted = read("customer.subscription.deleted", "one", now);
        assert_eq!(deleted["data"]["object"]["id"], created["data"]["object"]["id"]);
        let other = read("customer.subscription.created", "two", now);
        for pointer in ["/id", "/data/object/id", "/data/object/customer"] {
            assert_ne!(other.pointer(pointer), created.pointer(pointer), "{pointer}");
        }
        assert_eq!(sample("nothing", "one", now.parse().unwrap()), None);
    }
}
