//! Which of two states of a subscription is newer. Pure: no SQL, no clock, no network.
//!
//! Stripe promises no order of delivery and its `created` counts whole seconds, so neither arrival nor the time alone
//! can decide. Source: <https://docs.stripe.com/webhooks#event-ordering>.

use chrono::{DateTime, Utc};
use serde_json::Value;

/// What orders one state of a subscription among others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version {
    /// Stripe's time of the event that showed the state.
    pub created: DateTime<Utc>,
    /// Whether the state is one that a subscription never leaves.
    pub is_final: bool,
    /// Whether the event is `customer.subscription.created`.
    pub is_birth: bool,
}

/// Where a newcomer stands against what is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// The newcomer is newer.
    Newer,
    /// The newcomer is older.
    Older,
    /// Both are of the same second, and only more knowledge than two versions can tell.
    Tie,
}

/// Compares a newcomer with what is stored.
pub fn compare(stored: Version, newcomer: Version) -> Order {
    // A subscription never leaves a final state. An `updated` of a later second can still come before it in truth: it
    // is stamped when it is made, and the deletion may have been stamped first.
    if stored.is_final != newcomer.is_final {
        return if newcomer.is_final { Order::Newer } else { Order::Older };
    }
    match newcomer.created.cmp(&stored.created) {
        std::cmp::Ordering::Greater => Order::Newer,
        std::cmp::Ordering::Less => Order::Older,
        // Nothing happens to a subscription before it is created.
        std::cmp::Ordering::Equal => match (stored.is_birth, newcomer.is_birth) {
            (true, false) => Order::Newer,
            (false, true) => Order::Older,
            _ => Order::Tie,
        },
    }
}

/// One of the events of one second, as far as it tells of the others.
#[derive(Clone, Copy, Debug)]
pub struct Peer<'a> {
    /// The subscription as the event shows it.
    pub object: &'a Value,
    /// The former values of what the event changed.
    pub previous: Option<&'a Value>,
}

/// What the peers' previous values tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Index of the peer whose state is the newest.
    pub newest: usize,
    /// Whether every other peer is known to come before it.
    pub is_decided: bool,
}

/// Picks the newest of the events of one second by their `previous_attributes`.
///
/// An event follows another if its previous values are the other's state, directly or over a chain of further events
/// (`a` before `b`, `b` before `c`). Two changes that undo each other follow each other both ways, which tells nothing. An
/// event with previous values follows one without any. Of several events that nothing follows the newcomer wins,
/// undecided, or what is stored if something follows the newcomer.
///
/// `stored` and `newcomer` are indices into `peers`; `stored` is `None` if the stored state's event is not known.
pub fn newest_of(peers: &[Peer<'_>], stored: Option<usize>, newcomer: usize) -> Verdict {
    let before = precedence(peers);
    let precedes = |a: usize, b: usize| {
        let by_chain = before[a][b] && !before[b][a];
        by_chain || (!peers[a].has_previous() && peers[b].has_previous())
    };
    let is_last = |&peer: &usize| !(0..peers.len()).any(|other| precedes(peer, other));
    let last: Vec<usize> = (0..peers.len()).filter(is_last).collect();
    if let [newest] = last[..] {
        return Verdict { newest, is_decided: true };
    }
    let candidates = [Some(newcomer), stored];
    let winner = candidates.into_iter().flatten().find(|candidate| last.contains(candidate));
    // Something follows both of them: the one of these with the greatest index, which is the same for all orders.
    Verdict { newest: winner.or(last.last().copied()).unwrap_or(newcomer), is_decided: false }
}

impl Peer<'_> {
    /// Whether the event says what it changed. An empty object says nothing, on whatever level it stands.
    fn has_previous(&self) -> bool {
        self.previous.is_some_and(says_something)
    }
}

/// Whether a value is, or holds, more than empty objects.
fn says_something(value: &Value) -> bool {
    match value {
        Value::Object(members) => members.values().any(says_something),
        _ => true,
    }
}

/// `[a][b]`: a chain of events, each followed by the next and not the other way round, leads from `a` to `b`.
fn precedence(peers: &[Peer<'_>]) -> Vec<Vec<bool>> {
    let follows = |b: &Peer<'_>, a: &Peer<'_>| b.previous.is_some_and(|previous| is_state(previous, a.object));
    let mut before: Vec<Vec<bool>> =
        peers.iter().map(|a| peers.iter().map(|b| follows(b, a) && !follows(a, b)).collect()).collect();
    for via in 0..peers.len() {
        let after_via = before[via].clone();
        for after_from in before.iter_mut().filter(|after_from| after_from[via]) {
            after_from.iter_mut().zip(&after_via).for_each(|(from, via)| *from |= via);
        }
    }
    before
}

/// Whether `previous` says something and all of its values are those of `object`.
fn is_state(previous: &Value, object: &Value) -> bool {
    previous.is_object() && says_something(previous) && is_part(previous, object)
}

/// Whether `object` has the values of `part`. Stripe names changed members of an object alone, but lists whole; what
/// was absent it shows as null.
fn is_part(part: &Value, object: &Value) -> bool {
    match (part, object) {
        (Value::Object(part), Value::Object(object)) => {
            part.iter().all(|(name, value)| is_part(value, object.get(name).unwrap_or(&Value::Null)))
        }
        (Value::Array(part), Value::Array(object)) => {
            part.len() == object.len() && part.iter().zip(object).all(|(part, object)| is_part(part, object))
        }
        _ => part == object,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn version(second: i64, is_final: bool, is_birth: bool) -> Version {
        Version { created: DateTime::from_timestamp(second, 0).unwrap(), is_final, is_birth }
    }

    #[test]
    fn a_final_state_beats_every_other_whatever_the_times() {
        assert_eq!(compare(version(9, false, false), version(1, true, false)), Order::Newer);
        assert_eq!(compare(version(1, true, false), version(9, false, false)), Order::Older);
        assert_eq!(compare(version(1, true, false), version(2, true, false)), Order::Newer);
    }

    #[test]
    fn the_later_second_wins_and_birth_comes_first_within_one() {
        assert_eq!(compare(version(1, false, false), version(2, false, true)), Order::Newer);
        assert_eq!(compare(version(2, false, true), version(1, false, false)), Order::Older);
        assert_eq!(compare(version(1, false, true), version(1, false, false)), Order::Newer);
        assert_eq!(compare(version(1, false, false), version(1, false, true)), Order::Older);
        assert_eq!(compare(version(1, false, false), version(1, false, false)), Order::Tie);
    }

    prop_compose! {
        fn any_version()(second in 0_i64..4, is_final: bool, is_birth: bool) -> Version {
            version(second, is_final, is_birth && !is_final)
        }
    }

    proptest! {
        #[test]
        fn comparing_is_antisymmetric(a in any_version(), b in any_version()) {
            let reversed = match compare(b, a) {
                Order::Newer => Order::Older,
                Order::Older => Order::Newer,
                Order::Tie => Order::Tie,
            };
            prop_assert_eq!(compare(a, b), reversed);
        }

        #[test]
        fn comparing_is_transitive(a in any_version(), b in any_version(), c in any_version()) {
            if compare(a, b) == Order::Newer && compare(b, c) == Order::Newer {
                prop_assert_eq!(compare(a, c), Order::Newer);
            }
            if compare(a, b) == Order::Tie && compare(b, c) == Order::Tie {
                prop_assert_eq!(compare(a, c), Order::Tie);
            }
        }
    }

    /// The events of a walk through states, each a pair of counters of which every step changes one to a new value.
    fn walk(steps: &[bool]) -> Vec<(Value, Value)> {
        let (mut x, mut y) = (0, 0);
        steps
            .iter()
            .map(|&first| {
                let previous = if first { json!({"x": x}) } else { json!({"nested": {"y": y}}) };
                if first {
                    x += 1
                } else {
                    y += 1
                }
                (json!({"x": x, "nested": {"y": y, "z": 0}}), previous)
            })
            .collect()
    }

    proptest! {
        #[test]
        fn without_undoing_every_order_of_arrival_ends_with_the_last_event(
            steps in prop::collection::vec(any::<bool>(), 2..7),
            seed in prop::collection::vec(any::<u32>(), 7),
        ) {
            let events = walk(&steps);
            let mut arrival: Vec<usize> = (0..events.len()).collect();
            arrival.sort_by_key(|&index| seed[index]);
            let mut known: Vec<usize> = vec![arrival[0]];
            let mut stored = arrival[0];
            for &newcomer in &arrival[1..] {
                known.push(newcomer);
                let peers: Vec<Peer> =
                    known.iter().map(|&index| Peer { object: &events[index].0, previous: Some(&events[index].1) }).collect();
                let position = known.iter().position(|&index| index == stored);
                stored = known[newest_of(&peers, position, known.len() - 1).newest];
            }
            prop_assert_eq!(stored, events.len() - 1);
        }
    }

    #[test]
    fn changes_that_undo_each_other_cannot_be_told_apart_and_the_newcomer_wins() {
        let (up, down) = (json!({"quantity": 2}), json!({"quantity": 1}));
        let peers = [Peer { object: &up, previous: Some(&down) }, Peer { object: &down, previous: Some(&up) }];
        assert_eq!(newest_of(&peers, Some(0), 1), Verdict { newest: 1, is_decided: false });
        assert_eq!(newest_of(&peers, Some(1), 0), Verdict { newest: 0, is_decided: false });
        assert_eq!(newest_of(&peers, None, 0), Verdict { newest: 0, is_decided: false });
    }

    #[test]
    fn an_event_with_previous_values_follows_one_without_any_in_every_order() {
        let (ends, pro) = (json!({"status": "trialing"}), json!({"status": "active", "plan": "pro"}));
        // Its previous values are not the other's state, because a third event came in between.
        let previous = json!({"plan": "team"});
        let peers = [Peer { object: &ends, previous: None }, Peer { object: &pro, previous: Some(&previous) }];
        for (stored, newcomer) in [(0, 1), (1, 0)] {
            assert_eq!(newest_of(&peers, Some(stored), newcomer), Verdict { newest: 1, is_decided: true });
        }
    }

    #[test]
    fn an_empty_object_says_nothing_on_any_level() {
        let (a, b) = (json!({"status": "active", "metadata": {}}), json!({"status": "paused", "metadata": {}}));
        let (empty, status) = (json!({"metadata": {}}), json!({"status": "active"}));
        let peers = [Peer { object: &a, previous: Some(&empty) }, Peer { object: &b, previous: Some(&status) }];
        for (stored, newcomer) in [(0, 1), (1, 0)] {
            assert_eq!(newest_of(&peers, Some(stored), newcomer), Verdict { newest: 1, is_decided: true });
        }
        assert!(!is_state(&empty, &a));
    }

    #[test]
    fn no_previous_values_tell_nothing() {
        let (a, b, none) = (json!({"status": "active"}), json!({"status": "paused"}), json!({}));
        let peers = [Peer { object: &a, previous: None }, Peer { object: &b, previous: Some(&none) }];
        assert_eq!(newest_of(&peers, Some(0), 1), Verdict { newest: 1, is_decided: false });
    }

    #[test]
    fn lists_are_compared_whole_and_absent_values_are_null() {
        let object = json!({"items": {"data": [{"quantity": 1, "id": "si"}]}, "cancel_at": 5});
        assert!(is_state(&json!({"items": {"data": [{"quantity": 1}]}}), &object));
        assert!(!is_state(&json!({"items": {"data": []}}), &object));
        assert!(is_state(&json!({"pause_collection": null}), &object));
        assert!(!is_state(&json!({"cancel_at": null}), &object));
    }
}
