//! A customer's features, of an active entitlement summary or of Stripe's list of active entitlements. Pure.
//!
//! Source: <https://docs.stripe.com/api/entitlements/active-entitlement>.

use std::collections::BTreeMap;

use serde_json::Value;

use super::json;
use super::object::{ActiveEntitlement, Object};

/// A feature that a customer may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Feature {
    /// The name that the application gave it at Stripe.
    pub lookup_key: String,
    /// `feat_…`.
    pub id: Option<String>,
}

impl Feature {
    /// The features that a summary shows, and whether there are more than these.
    pub fn of_summary(summary: &Object) -> (Vec<Self>, bool) {
        let listed = summary.entitlements.data.clone().unwrap_or_default();
        (distinct(listed), summary.entitlements.has_more)
    }

    /// The features of the entitlements that `GET /v1/entitlements/active_entitlements` listed.
    pub fn of_list(listed: &[Value]) -> Vec<Self> {
        distinct(listed.iter().map(|value| json::read(&value.to_string()).unwrap_or_default()))
    }
}

/// One feature for each lookup key, in its order. Two of one key never are; of such, the last counts.
fn distinct(listed: impl IntoIterator<Item = ActiveEntitlement>) -> Vec<Feature> {
    let named = listed.into_iter().filter_map(|entitlement| Some((entitlement.lookup_key?, entitlement.feature)));
    let features: BTreeMap<_, _> = named.collect();
    features.into_iter().map(|(lookup_key, id)| Feature { lookup_key, id }).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn feature(lookup_key: &str, id: Option<&str>) -> Feature {
        Feature { lookup_key: lookup_key.to_owned(), id: id.map(str::to_owned) }
    }

    #[test]
    fn features_are_read_of_a_summary_and_of_a_list() {
        let entitlements = json!([
            {"id": "ent_1", "object": "entitlements.active_entitlement", "feature": "feat_1", "lookup_key": "sso"},
            {"id": "ent_2", "feature": {"id": "feat_2", "object": "entitlements.feature"}, "lookup_key": "audit"},
            {"id": "ent_3", "feature": "feat_3"}, null, 7, {"lookup_key": "bare", "feature": 7},
        ]);
        let expected = [feature("audit", Some("feat_2")), feature("bare", None), feature("sso", Some("feat_1"))];
        let summary = json!({"object": "entitlements.active_entitlement_summary", "customer": "cus_1",
                             "entitlements": {"object": "list", "data": entitlements, "has_more": true}});
        assert_eq!(Feature::of_summary(&Object::from(&summary)), (expected.to_vec(), true));
        assert_eq!(Feature::of_list(entitlements.as_array().unwrap()), expected);
        let none = json!({"customer": "cus_1", "entitlements": {"data": []}});
        assert_eq!(Feature::of_summary(&Object::from(&none)), (Vec::new(), false));
    }
}
