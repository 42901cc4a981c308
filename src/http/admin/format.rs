//! How single values look: times, spans, numbers, statuses, and the paths that ids lead to.

use std::fmt;

use askama::Template;
use askama::filters::HtmlSafe;
use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use uuid::Uuid;

use crate::db::listing::Listed;

/// What stands for a value that is not there.
pub const NONE: &str = "–";

/// A point in time: in UTC, and how far from now.
#[derive(Clone, Copy, Debug)]
pub struct When {
    at: DateTime<Utc>,
    now: DateTime<Utc>,
}

impl When {
    pub fn new(at: DateTime<Utc>, now: DateTime<Utc>) -> Self {
        Self { at, now }
    }

    /// `3 min ago`.
    pub fn hint(&self) -> String {
        let past = self.now - self.at;
        match past.num_seconds() {
            0..5 => "just now".to_owned(),
            secs if secs > 0 => format!("{} ago", span(past)),
            _ => format!("in {}", span(-past)),
        }
    }
}

/// Nothing in it comes from outside.
impl HtmlSafe for When {}

impl fmt::Display for When {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let machine = self.at.to_rfc3339_opts(SecondsFormat::Secs, true);
        let people = self.at.format("%-d %b %Y, %H:%M:%S");
        write!(
            f,
            "<time datetime=\"{machine}\">{people}<abbr title=\"Coordinated Universal Time\"> UTC</abbr></time> \
             <span class=\"hint\">{}</span>",
            self.hint()
        )
    }
}

/// A span of time in its largest unit.
pub fn span(span: TimeDelta) -> String {
    let secs = span.num_seconds();
    match secs {
        ..100 => format!("{secs} s"),
        100..6_000 => format!("{} min", (secs + 30) / 60),
        6_000..172_800 => format!("{} h", (secs + 1_800) / 3_600),
        _ => format!("{} d", (secs + 43_200) / 86_400),
    }
}

/// A delivery lag in seconds. Stripe's `created` counts whole seconds, so nothing below one is known.
pub fn lag(secs: Option<f64>) -> String {
    match secs {
        None => NONE.to_owned(),
        Some(secs) if secs < 1.0 => "under 1 s".to_owned(),
        #[expect(clippy::cast_possible_truncation, reason = "a lag is a number of seconds, and casts saturate")]
        Some(secs) => span(TimeDelta::try_seconds(secs.round() as i64).unwrap_or(TimeDelta::MAX)),
    }
}

/// A number with its thousands apart.
pub fn count(number: i64) -> String {
    let digits = number.to_string();
    let (head, tail) = digits.split_at(digits.len() % 3);
    let groups = tail.as_bytes().chunks(3).map(|group| String::from_utf8_lossy(group));
    let groups: Vec<_> = (!head.is_empty()).then(|| head.into()).into_iter().chain(groups).collect();
    groups.join(",")
}

/// `1 event`, `2 events`.
pub fn counted(number: i64, thing: &str) -> String {
    format!("{} {thing}{}", count(number), if number == 1 { "" } else { "s" })
}

/// An event's type, which may break into lines behind its dots.
#[derive(Clone, Debug, Template)]
#[template(source = "{% for part in text.split_inclusive(['.', '_']) %}{{ part }}<wbr>{% endfor %}", ext = "html")]
pub struct EventType {
    text: String,
}

/// Its template escapes.
impl HtmlSafe for EventType {}

impl EventType {
    pub fn new(text: impl Into<String>) -> Self {
        Self { text: text.into() }
    }
}

/// The shape that goes with a status.
#[derive(Clone, Copy, Debug, Template)]
#[template(path = "icon.html")]
pub struct Icon<'a> {
    tone: &'a str,
}

/// Its template escapes.
impl HtmlSafe for Icon<'_> {}

/// The shape that goes with a status.
pub fn icon(tone: &str) -> Icon<'_> {
    Icon { tone }
}

/// A status as a word, a shape and a colour.
#[derive(Clone, Debug, Template)]
#[template(path = "badge.html")]
pub struct Badge {
    word: String,
    /// The class that brings the colour.
    tone: &'static str,
}

/// Its template escapes.
impl HtmlSafe for Badge {}

impl Badge {
    /// What became of an event.
    pub fn of_event(status: &str) -> Self {
        let tone = ["applied", "stale", "ignored", "parked", "failed"].into_iter().find(|tone| *tone == status);
        Self { word: status.to_owned(), tone: tone.unwrap_or("ignored") }
    }

    /// Whether an account is entitled.
    pub fn of_entitlement(entitled: bool) -> Self {
        if entitled {
            Self { word: "entitled".to_owned(), tone: "applied" }
        } else {
            Self { word: "not entitled".to_owned(), tone: "ignored" }
        }
    }

    /// A subscription's status, in Stripe's word.
    pub fn of_subscription(status: &str) -> Self {
        let tone = match status {
            "active" | "trialing" => "applied",
            "past_due" | "incomplete" | "paused" => "parked",
            "unpaid" => "failed",
            _ => "ignored",
        };
        Self { word: status.replace('_', " "), tone }
    }

    /// An invoice's.
    pub fn of_invoice(status: &str) -> Self {
        let tone = match status {
            "paid" => "applied",
            "payment_failed" | "action_required" | "uncollectible" => "failed",
            "open" => "parked",
            _ => "ignored",
        };
        Self { word: status.replace('_', " "), tone }
    }
}

/// All but what never needs it in a path or a query.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'_').remove(b'-').remove(b'.').remove(b'~');

/// `text` for a path or a query.
pub fn encode(text: &str) -> String {
    utf8_percent_encode(text, ENCODED).to_string()
}

/// The page of an event.
pub fn event_path(id: &str) -> String {
    format!("/admin/events/{}", encode(id))
}

/// The page of an account.
pub fn account_path(id: Uuid) -> String {
    format!("/admin/accounts/{id}")
}

/// The search for an id.
pub fn search_path(id: &str) -> String {
    format!("/admin/search?q={}", encode(id))
}

/// An event that came later than this did not come at once.
const LATE: TimeDelta = TimeDelta::minutes(1);

/// An event in a list.
#[derive(Clone, Debug)]
pub struct EventRow {
    pub id: String,
    pub path: String,
    pub type_: EventType,
    pub badge: Badge,
    pub customer: Option<String>,
    pub subscription: Option<String>,
    pub created: Option<When>,
    pub received: When,
    /// How long after its creation it came, where that is worth a word.
    pub late: Option<String>,
    /// Whether it is the one that the page is about.
    pub is_here: bool,
}

impl EventRow {
    pub fn new(event: &Listed, now: DateTime<Utc>) -> Self {
        Self {
            path: event_path(&event.id),
            id: event.id.clone(),
            type_: EventType::new(&event.type_),
            badge: Badge::of_event(&event.status),
            customer: event.customer_id.clone(),
            subscription: event.subscription_id.clone(),
            created: event.created.map(|created| When::new(created, now)),
            received: When::new(event.received_at, now),
            late: event
                .created
                .map(|created| event.received_at - created)
                .filter(|late| *late > LATE)
                .map(|late| format!("came {} later", span(late))),
            is_here: false,
        }
    }

    pub fn all(events: &[Listed], now: DateTime<Utc>) -> Vec<Self> {
        events.iter().map(|event| Self::new(event, now)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_and_numbers_are_short() {
        let shown = [5, 99, 100, 3_600, 7_200, 172_800].map(|secs| span(TimeDelta::seconds(secs)));
        assert_eq!(shown, ["5 s", "99 s", "2 min", "60 min", "2 h", "2 d"]);
        assert_eq!([0, 999, 1_000, 1_234_567].map(count), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!([Some(0.4), Some(3.6), None].map(lag), ["under 1 s", "4 s", "–"]);
    }

    #[test]
    fn an_id_stays_within_its_path() {
        assert_eq!(event_path("evt_1/../x?<b>"), "/admin/events/evt_1%2F..%2Fx%3F%3Cb%3E");
    }

    #[test]
    fn a_status_that_stripe_invents_is_escaped() {
        let badge = Badge::of_subscription("<script>").to_string();
        assert!(badge.contains("&#60;script&#62;") && !badge.contains("<script"), "{badge}");
    }
}
