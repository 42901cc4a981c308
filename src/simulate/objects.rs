//! Checkout sessions, invoices and summaries of features as Stripe writes them. It renders; what happened is not decided
//! here.
//!
//! Source: <https://docs.stripe.com/api/checkout/sessions/object>, <https://docs.stripe.com/api/invoices/object>,
//! <https://docs.stripe.com/api/entitlements/active-entitlement>.

use serde_json::{Value, json};

use super::model::{Invoice, LISTED_FEATURES, Life, Occurrence, Shape};

/// The id of the life's checkout session.
pub(super) fn checkout_id(life: &Life) -> String {
    format!("cs_test_{}", life.subscription_id.replace("sub_", ""))
}

/// The completed checkout session in which the subscription was bought.
pub(super) fn checkout(life: &Life, occurrence: &Occurrence) -> Value {
    let amount = amount(occurrence);
    let reference = life.account.link.is_named_by_checkout().then_some(life.account.id);
    json!({
        "id": checkout_id(life),
        "object": "checkout.session",
        "after_expiration": null,
        "allow_promotion_codes": null,
        "amount_subtotal": amount,
        "amount_total": amount,
        "automatic_tax": {"enabled": false, "liability": null, "status": null},
        "billing_address_collection": null,
        "cancel_url": "https://app.example/billing/canceled",
        "client_reference_id": reference,
        "client_secret": null,
        "consent": null,
        "consent_collection": null,
        "created": occurrence.created - 95,
        "currency": "usd",
        "custom_fields": [],
        "customer": life.customer_id,
        "customer_creation": "always",
        "customer_details": {"address": null, "email": "billing@simulated.example", "name": "Simulated Ltd",
            "phone": null, "tax_exempt": "none", "tax_ids": []},
        "customer_email": null,
        "expires_at": occurrence.created + 86_305,
        "invoice": occurrence.state.latest_invoice,
        "invoice_creation": null,
        "livemode": false,
        "locale": null,
        "metadata": {},
        "mode": "subscription",
        "payment_intent": null,
        "payment_link": null,
        "payment_method_collection": "always",
        "payment_method_types": ["card"],
        "payment_status": if occurrence.state.status == "incomplete" { "unpaid" } else { "paid" },
        "setup_intent": null,
        "status": "complete",
        "submit_type": null,
        "subscription": life.subscription_id,
        "success_url": "https://app.example/billing/done?session_id={CHECKOUT_SESSION_ID}",
        "total_details": {"amount_discount": 0, "amount_shipping": 0, "amount_tax": 0},
        "ui_mode": "hosted",
        "url": null,
    })
}

/// The page on which an invoice can be paid.
pub(super) fn hosted_invoice_url(invoice: &Invoice) -> String {
    format!("https://invoice.stripe.example/i/{}?s=ap", invoice.id)
}

/// An invoice as it was right after an occurrence.
pub(super) fn invoice(life: &Life, occurrence: &Occurrence, invoice: &Invoice) -> Value {
    let amount = amount(occurrence);
    let is_paid = invoice.status == "paid";
    let paid = if is_paid { amount } else { 0 };
    let (start, end) = occurrence.state.period;
    let id = &invoice.id;
    let since = |status| (invoice.status == status).then_some(occurrence.created);
    let mut object = json!({
        "id": id,
        "object": "invoice",
        "account_country": "US",
        "account_name": "Simulated Works",
        "amount_due": amount,
        "amount_paid": paid,
        "amount_remaining": amount - paid,
        "attempt_count": 1,
        "attempted": true,
        "auto_advance": invoice.status == "open",
        "billing_reason": "subscription_cycle",
        "collection_method": "charge_automatically",
        "created": invoice.created,
        "currency": "usd",
        "customer": life.customer_id,
        "customer_email": "billing@simulated.example",
        "customer_name": "Simulated Ltd",
        "discounts": [],
        "due_date": null,
        "hosted_invoice_url": hosted_invoice_url(invoice),
        "lines": lines(life, occurrence, id),
        "livemode": false,
        "metadata": {},
        "next_payment_attempt": invoice.next_payment_attempt,
        "number": null,
        "period_end": end,
        "period_start": start,
        "status": invoice.status,
        "status_transitions": {"finalized_at": invoice.created, "marked_uncollectible_at": since("uncollectible"),
            "paid_at": since("paid"), "voided_at": since("void")},
        "subtotal": amount,
        "total": amount,
        "webhooks_delivered_at": null,
    });
    match life.shape {
        Shape::Classic => {
            object["paid"] = is_paid.into();
            object["subscription"] = life.subscription_id.clone().into();
            object["subscription_details"] = json!({"metadata": {}});
        }
        Shape::Basil | Shape::Endive => {
            object["parent"] = json!({
                "quote_details": null,
                "subscription_details": {"metadata": {}, "subscription": life.subscription_id},
                "type": "subscription_details",
            });
        }
    }
    object
}

fn lines(life: &Life, occurrence: &Occurrence, invoice_id: &str) -> Value {
    let (start, end) = occurrence.state.period;
    let data: Vec<_> = occurrence
        .state
        .items
        .iter()
        .map(|item| {
            let mut line = json!({
                "id": format!("il_{}", item.id),
                "object": "line_item",
                "amount": item.price.amount * i64::from(item.quantity.unwrap_or(0)),
                "currency": "usd",
                "invoice": invoice_id,
                "livemode": false,
                "metadata": {},
                "period": {"end": end, "start": start},
                "quantity": item.quantity,
            });
            match life.shape {
                Shape::Classic => line["subscription"] = life.subscription_id.clone().into(),
                Shape::Basil | Shape::Endive => {
                    line["parent"] = json!({
                        "invoice_item_details": null,
                        "subscription_item_details": {"invoice_item": null, "proration": false,
                            "subscription": life.subscription_id, "subscription_item": item.id},
                        "type": "subscription_item_details",
                    });
                }
            }
            line
        })
        .collect();
    json!({"object": "list", "total_count": data.len(), "data": data, "has_more": false,
        "url": format!("/v1/invoices/{invoice_id}/lines")})
}

/// What one period costs, in cents.
fn amount(occurrence: &Occurrence) -> i64 {
    occurrence.state.items.iter().map(|item| item.price.amount * i64::from(item.quantity.unwrap_or(0))).sum()
}

/// A customer's features as an event tells of them: at most ten.
pub(super) fn feature_summary(life: &Life, features: &[&str]) -> Value {
    let listed = &features[..features.len().min(LISTED_FEATURES)];
    json!({
        "object": "entitlements.active_entitlement_summary",
        "customer": life.customer_id,
        "entitlements": {
            "object": "list",
            "data": listed.iter().map(|key| entitlement(key)).collect::<Vec<_>>(),
            "has_more": features.len() > listed.len(),
            "url": format!("/v1/customer/{}/entitlements", life.customer_id),
        },
        "livemode": false,
    })
}

/// One active entitlement.
pub(super) fn entitlement(lookup_key: &str) -> Value {
    json!({
        "id": format!("ent_test_Sim{lookup_key}"),
        "object": "entitlements.active_entitlement",
        "feature": feature_id(lookup_key),
        "livemode": false,
        "lookup_key": lookup_key,
    })
}

/// The id of the feature with this lookup key.
pub(super) fn feature_id(lookup_key: &str) -> String {
    format!("feat_test_Sim{lookup_key}")
}
