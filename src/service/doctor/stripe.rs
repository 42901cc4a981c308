//! The checks that ask Stripe.

use std::collections::BTreeSet;

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};

use super::{Check, Finding};
use crate::service::{Service, ServiceError};
use crate::stripe::api::{API_VERSION, Client, Endpoint, PayloadForm};
use crate::stripe::handled_types;
use crate::stripe::trust::Mode;

/// A clock that is off by more than this is a finding. Signatures are refused from `SIGNATURE_TOLERANCE_SECS` on.
const CLOCK_LIMIT: TimeDelta = TimeDelta::seconds(30);

/// How far undelivered events are looked for. Stripe retries for so long.
const UNDELIVERED_SINCE: TimeDelta = TimeDelta::days(3);

/// How many ids a line names.
const NAMED: usize = 3;

impl Service {
    /// What Stripe's API shows to be wrong; nothing without a key.
    pub(super) async fn stripe_findings(&self, webhook_path: &str, last_event: Option<DateTime<Utc>>) -> Vec<Finding> {
        let Some(stripe) = &self.parts().stripe else { return Vec::new() };
        let mut findings: Vec<_> = key_mode(stripe.mode(), self.parts().policy.mode).into_iter().collect();
        match stripe.webhook_endpoints().await {
            Err(error) => findings.push(Finding::new(
                Check::Endpoints,
                format!("cannot read the webhook endpoints: {:#}", anyhow::Error::from(error)),
                "see that STRIPE_SECRET_KEY is valid and may read webhook endpoints, and that this machine reaches Stripe",
            )),
            Ok(answer) => {
                findings.extend(answer.date.and_then(|stripes| clock(Utc::now(), stripes)));
                let mut endpoints = answer.body;
                add_destinations(stripe, &mut endpoints).await;
                findings.extend(judge_endpoints(&endpoints, webhook_path, self.parts().policy.mode, last_event));
            }
        }
        findings.extend(self.undelivered(stripe).await);
        findings
    }

    /// Events that Stripe could not deliver and that nothing else has brought.
    async fn undelivered(&self, stripe: &Client) -> Option<Finding> {
        let types: Vec<_> = handled_types().collect();
        let events = match stripe.undelivered_events(&types, Utc::now() - UNDELIVERED_SINCE).await {
            Ok(events) => events,
            Err(error) => {
                return Some(Finding::new(
                    Check::Undelivered,
                    format!("cannot read Stripe's undelivered events: {:#}", anyhow::Error::from(error)),
                    "see that STRIPE_SECRET_KEY may read events",
                ));
            }
        };
        let ids: Vec<_> = events.iter().filter_map(|event| event.id().map(str::to_owned)).collect();
        // A database that does not answer is a finding of its own.
        let missing: Result<_, ServiceError> = self.unrecorded(ids).await;
        let missing: BTreeSet<_> = missing.ok()?.into_iter().collect();
        let is_missing = |id: &str| missing.contains(id);
        let missing: Vec<_> = events.iter().filter(|event| event.id().is_some_and(is_missing)).collect();
        let ids: Vec<_> = missing.iter().filter_map(|event| event.id()).collect();
        if ids.is_empty() {
            return None;
        }
        let created = missing.iter().filter_map(|event| event.object()["created"].as_i64()).min();
        let problem = format!("Stripe could not deliver {} events ({})", ids.len(), some_of(&ids));
        let advice = "see the endpoint's page in Stripe's dashboard for the answers that Stripe got; `subledger reconcile \
                      --since 72h` applies the events now";
        let since = created.and_then(|seconds| DateTime::from_timestamp(seconds, 0));
        Some(Finding::new(Check::Undelivered, problem, advice).since(since))
    }
}

/// Adds the event destinations that are not in the list already.
async fn add_destinations(stripe: &Client, endpoints: &mut Vec<Endpoint>) {
    match stripe.event_destinations().await {
        Ok(destinations) => {
            let is_known = |destination: &Endpoint| {
                endpoints.iter().any(|endpoint| {
                    endpoint.id == destination.id
                        || (endpoint.url == destination.url && endpoint.form == destination.form)
                })
            };
            let new: Vec<_> = destinations.into_iter().filter(|destination| !is_known(destination)).collect();
            endpoints.extend(new);
        }
        Err(error) => log::debug!("cannot read Stripe's event destinations: {:#}", anyhow::Error::from(error)),
    }
}

fn key_mode(key: Option<Mode>, mode: Mode) -> Option<Finding> {
    let is_wrong = matches!((key, mode), (Some(Mode::Live), Mode::Test) | (Some(Mode::Test), Mode::Live));
    is_wrong.then(|| {
        Finding::new(
            Check::Mode,
            format!("STRIPE_SECRET_KEY is a key of {} mode, STRIPE_MODE is {mode}", key.unwrap_or_default()),
            format!("set STRIPE_SECRET_KEY to a key of {mode} mode, or change STRIPE_MODE"),
        )
    })
}

fn clock(ours: DateTime<Utc>, stripes: DateTime<Utc>) -> Option<Finding> {
    let ahead = ours - stripes;
    (ahead.abs() > CLOCK_LIMIT).then(|| {
        let direction = if ahead > TimeDelta::zero() { "ahead of" } else { "behind" };
        Finding::new(
            Check::Clock,
            format!("this machine's clock is {} s {direction} Stripe's", ahead.abs().num_seconds()),
            "synchronize it (NTP): deliveries are refused once it is off by more than SIGNATURE_TOLERANCE_SECS",
        )
    })
}

/// What is wrong with the endpoints that are ours.
fn judge_endpoints(
    endpoints: &[Endpoint],
    webhook_path: &str,
    mode: Mode,
    last_event: Option<DateTime<Utc>>,
) -> Vec<Finding> {
    let ends_in_path = |url: &str| url.split(['?', '#']).next().is_some_and(|url| url.ends_with(webhook_path));
    let ours: Vec<_> = endpoints.iter().filter(|endpoint| endpoint.is_managed || ends_in_path(&endpoint.url)).collect();
    if ours.is_empty() {
        let problem = format!("Stripe has no webhook endpoint whose URL ends in {webhook_path}");
        return vec![
            Finding::new(Check::Endpoints, problem, "run `subledger setup --url https://…`").since(last_event),
        ];
    }
    let mut findings: Vec<_> = ours.iter().flat_map(|endpoint| judge_endpoint(endpoint, mode, last_event)).collect();
    findings.extend(missing_types(&ours));
    findings.extend(old_version(&ours));
    findings
}

fn judge_endpoint(endpoint: &Endpoint, mode: Mode, last_event: Option<DateTime<Utc>>) -> Vec<Finding> {
    let Endpoint { id, url, .. } = endpoint;
    let mut findings = Vec::new();
    if !endpoint.is_enabled {
        let problem = format!("webhook endpoint {id} ({url}) is disabled: Stripe sends it nothing");
        let advice = format!(
            "enable it ({}), then run `subledger reconcile --since 30d`",
            remedy(endpoint, "in Stripe's dashboard")
        );
        findings.push(Finding::new(Check::Endpoints, problem, advice).since(last_event));
    }
    if !mode.allows(endpoint.livemode) {
        let its_mode = if endpoint.livemode { Mode::Live } else { Mode::Test };
        findings.push(Finding::new(
            Check::Mode,
            format!("webhook endpoint {id} ({url}) belongs to {its_mode} mode, STRIPE_MODE is {mode}"),
            "delete the endpoint, or change STRIPE_MODE",
        ));
    }
    let superfluous: Vec<_> = endpoint.types.iter().map(String::as_str).filter(|name| !is_handled(name)).collect();
    if !superfluous.is_empty() {
        findings.push(Finding::new(
            Check::Endpoints,
            format!("webhook endpoint {id} ({url}) is sent types that nothing handles: {}", superfluous.join(", ")),
            format!("remove them ({})", remedy(endpoint, "in Stripe's dashboard")),
        ));
    }
    findings
}

/// How an endpoint is mended: `setup` keeps the ones that it made.
fn remedy(endpoint: &Endpoint, otherwise: &str) -> String {
    if endpoint.is_managed { format!("`subledger setup --url {}`", endpoint.url) } else { otherwise.to_owned() }
}

/// Whether a type is handled, in its snapshot or its thin form. `*` stands for every type, and so is not.
fn is_handled(name: &str) -> bool {
    let snapshot = name.strip_prefix("v1.").unwrap_or(name);
    handled_types().any(|handled| handled == snapshot)
        // The finer thin types refresh their object.
        || ["v1.customer.subscription.", "v1.entitlements.active_entitlement_summary."]
            .iter()
            .any(|prefix| name.starts_with(prefix))
}

/// Types that none of our enabled endpoints is sent.
fn missing_types(ours: &[&Endpoint]) -> Option<Finding> {
    let enabled: Vec<_> = ours.iter().filter(|endpoint| endpoint.is_enabled).collect();
    let first = enabled.first()?;
    let is_sent = |name: &str| {
        enabled.iter().any(|endpoint| {
            endpoint.types.iter().any(|sent| match endpoint.form {
                PayloadForm::Snapshot => sent == "*" || sent == name,
                PayloadForm::Thin => sent == "*" || sent.strip_prefix("v1.") == Some(name),
            })
        })
    };
    let missing: Vec<_> = handled_types().filter(|name| !is_sent(name)).collect();
    if missing.is_empty() {
        return None;
    }
    let problem = format!("webhook endpoint {} ({}) is not sent {}", first.id, first.url, missing.join(", "));
    let advice = format!("add them ({})", remedy(first, "in Stripe's dashboard, or by `subledger setup --url …`"));
    Some(Finding::new(Check::Endpoints, problem, advice))
}

/// Endpoints whose events have the shape of another API version. `None` is the account's default, which is not shown.
fn old_version(ours: &[&Endpoint]) -> Vec<Finding> {
    let has_current = ours.iter().any(|endpoint| endpoint.api_version.as_deref() == Some(API_VERSION));
    let is_old = |endpoint: &&&Endpoint| {
        endpoint.form == PayloadForm::Snapshot && endpoint.api_version.as_deref().is_some_and(|own| own != API_VERSION)
    };
    let old = ours.iter().filter(is_old).map(|endpoint| {
        let Endpoint { id, url, .. } = endpoint;
        let version = endpoint.api_version.as_deref().unwrap_or_default();
        let made = endpoint.created.map(|created| created.to_rfc3339_opts(SecondsFormat::Secs, true));
        let made = made.map(|made| format!(", made {made},")).unwrap_or_default();
        let advice = if has_current {
            format!(
                "`subledger setup --url {url} --upgrade` says when it can be deleted: another one has {API_VERSION}"
            )
        } else {
            format!("run `subledger setup --url {url} --upgrade`")
        };
        let problem =
            format!("webhook endpoint {id} ({url}){made} has API version {version}, this release uses {API_VERSION}");
        Finding::new(Check::Endpoints, problem, advice)
    });
    old.collect()
}

fn some_of(ids: &[&str]) -> String {
    let named = ids.iter().take(NAMED).copied().collect::<Vec<_>>().join(", ");
    if ids.len() > NAMED { format!("{named}, …") } else { named }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATH: &str = "/api/v1/webhooks/stripe";

    fn endpoint(id: &str) -> Endpoint {
        Endpoint {
            id: id.to_owned(),
            url: format!("https://app.example{PATH}"),
            is_enabled: true,
            types: handled_types().map(str::to_owned).collect(),
            api_version: Some(API_VERSION.to_owned()),
            livemode: true,
            created: None,
            is_managed: true,
            is_for_connect: false,
            form: PayloadForm::Snapshot,
        }
    }

    fn problems(endpoints: &[Endpoint]) -> Vec<String> {
        judge_endpoints(endpoints, PATH, Mode::Live, None).iter().map(ToString::to_string).collect()
    }

    #[track_caller]
    fn has_one(endpoint: Endpoint, words: &str) {
        let found = problems(&[endpoint]);
        assert!(found.len() == 1 && found[0].contains(words), "{found:?}");
    }

    #[test]
    fn an_endpoint_as_setup_makes_it_is_in_order_and_others_are_not_judged() {
        let foreign = Endpoint {
            url: "https://other.example/hooks".to_owned(),
            is_managed: false,
            is_enabled: false,
            ..endpoint("we_2")
        };
        assert_eq!(problems(&[endpoint("we_1"), foreign.clone()]), Vec::<String>::new());
        has_one(foreign, "no webhook endpoint");
        let default_version = Endpoint { api_version: None, is_managed: false, ..endpoint("we_3") };
        assert_eq!(problems(&[default_version]), Vec::<String>::new());
    }

    #[test]
    fn what_is_wrong_with_an_endpoint_is_told() {
        has_one(
            Endpoint { is_enabled: false, ..endpoint("we_1") },
            "we_1 (https://app.example/api/v1/webhooks/stripe) is disabled",
        );
        has_one(Endpoint { livemode: false, ..endpoint("we_1") }, "belongs to test mode, STRIPE_MODE is live");
        has_one(
            Endpoint { api_version: Some("2020-08-27".to_owned()), ..endpoint("we_1") },
            "has API version 2020-08-27",
        );
        let mut types = endpoint("we_1").types;
        let last = types.pop().unwrap();
        has_one(Endpoint { types: types.clone(), ..endpoint("we_1") }, &format!("is not sent {last}"));
        types.extend([last, "charge.succeeded".to_owned()]);
        has_one(Endpoint { types, ..endpoint("we_1") }, "types that nothing handles: charge.succeeded");
        has_one(Endpoint { types: vec!["*".to_owned()], ..endpoint("we_1") }, "types that nothing handles: *");
    }

    #[test]
    fn endpoints_complete_each_other_and_thin_ones_count() {
        let all = endpoint("we_1").types;
        let (first, second) = all.split_at(all.len() / 2);
        let halves = [first, second].map(|half| Endpoint { types: half.to_vec(), ..endpoint("we_1") });
        assert_eq!(problems(&halves), Vec::<String>::new());
        let thin = Endpoint {
            types: all.iter().map(|name| format!("v1.{name}")).collect(),
            api_version: None,
            form: PayloadForm::Thin,
            ..endpoint("ed_1")
        };
        assert_eq!(problems(&[thin]), Vec::<String>::new());
    }

    #[test]
    fn a_clock_that_is_off_and_a_key_of_the_other_mode_are_told() {
        let now = Utc::now();
        assert_eq!(clock(now, now - TimeDelta::seconds(5)), None);
        assert!(clock(now, now + TimeDelta::seconds(90)).unwrap().problem.contains("90 s behind"));
        assert!(clock(now, now - TimeDelta::seconds(90)).unwrap().problem.contains("90 s ahead"));
        assert_eq!(key_mode(Some(Mode::Test), Mode::Test), None);
        assert_eq!(key_mode(Some(Mode::Test), Mode::Any), None);
        assert!(key_mode(Some(Mode::Test), Mode::Live).unwrap().problem.contains("test mode"));
    }
}
