//! One account: whether it is entitled and why, its customers, its subscriptions, its story.

use actix_web::HttpResponse;
use actix_web::http::StatusCode;
use actix_web::web::{Data, Path, Query};
use askama::Template;
use chrono::{DateTime, Utc};
use serde_json::Value;
use uuid::Uuid;

use super::changes::ChangeRow;
use super::error::PageError;
use super::page::{Here, Page, Viewer, html};
use super::paging::{Paging, SubscriptionsQuery, page_of};
use super::show::{Badge, EventRow, When, event_path};
use crate::db::subscriptions::Row;
use crate::http::{ApiError, State};
use crate::service::{AccountView, Story};

#[derive(Template)]
#[template(path = "account.html")]
struct AccountPage {
    page: Page,
    id: Uuid,
    name: String,
    created: When,
    entitled: bool,
    tone: &'static str,
    reason: String,
    plan: Option<String>,
    seat_limit: Option<i32>,
    until: Option<When>,
    since_event: Option<(String, String)>,
    overdue: bool,
    features: Vec<String>,
    customers: Vec<String>,
    subscriptions: Vec<Subscription>,
    paging: Paging,
    history: Vec<ChangeRow>,
    story: Vec<EventRow>,
    story_is_cut: bool,
}

/// A subscription's columns.
struct Subscription {
    id: Option<String>,
    badge: Badge,
    invoice: Option<(String, Badge)>,
    /// The page where the latest invoice can be paid, if it has to be.
    pay_url: Option<String>,
    items: Vec<Item>,
    row: Row,
    /// The times that are there, each with its column's meaning.
    times: Vec<(&'static str, When)>,
    last_event: Option<(String, String)>,
}

/// An item of a subscription.
struct Item {
    /// The best name that there is.
    name: String,
    price: Option<String>,
    quantity: Option<i64>,
    /// For one unit, in the currency's smallest unit: `1200 usd every month`.
    amount: Option<String>,
}

impl Item {
    fn read(item: &Value) -> Self {
        let text = |name: &str| item[name].as_str().map(str::to_owned);
        let names = ["plan", "lookup_key", "stripe_price_id", "stripe_item_id"];
        let every = match (item["interval_count"].as_i64(), item["interval"].as_str()) {
            (None | Some(1), Some(interval)) => format!(" every {interval}"),
            (Some(count), Some(interval)) => format!(" every {count} {interval}s"),
            _ => String::new(),
        };
        let amount = |amount: i64| format!("{amount} {}{every}", text("currency").unwrap_or_default());
        Self {
            name: names.into_iter().find_map(text).unwrap_or_else(|| "Item".to_owned()),
            price: text("stripe_price_id"),
            quantity: item["quantity"].as_i64(),
            amount: item["unit_amount"].as_i64().map(amount),
        }
    }
}

/// `GET /admin/accounts/{id}`.
pub async fn show(
    viewer: Viewer,
    id: Path<String>,
    query: Result<Query<SubscriptionsQuery>, actix_web::Error>,
    state: Data<State>,
) -> Result<HttpResponse, PageError> {
    let unknown = ApiError::NotFound("account with this id");
    let Ok(id) = Uuid::try_parse(&id) else { return Err(unknown.into()) };
    let view = state.service.account(id).await.map_err(ApiError::of_request)?.ok_or(unknown)?;
    let (view, story) = state.service.story_of_account(view).await.map_err(ApiError::of_request)?;
    let query = query.map(Query::into_inner).unwrap_or_default();
    let changes = state.service.changes_of_account(id).await.map_err(ApiError::of_request)?;
    let now = Utc::now();
    let page = account_page(&viewer, view, &story, query, now);
    Ok(html(StatusCode::OK, &AccountPage { history: ChangeRow::all(&changes, now), ..page }))
}

fn account_page(
    viewer: &Viewer,
    view: AccountView,
    story: &Story,
    query: SubscriptionsQuery,
    now: DateTime<Utc>,
) -> AccountPage {
    let AccountView { account, customers, subscriptions, features, entitlement } = view;
    let (subscriptions, paging) = page_of(account.id, subscriptions, query);
    let name = if account.name.trim().is_empty() { "Account without a name".to_owned() } else { account.name };
    AccountPage {
        page: viewer.page(name.clone(), Here::Elsewhere),
        id: account.id,
        name,
        created: When::new(account.created_at, now),
        entitled: entitlement.entitled,
        tone: if entitlement.entitled { "applied" } else { "failed" },
        reason: entitlement.reason,
        plan: entitlement.plan,
        seat_limit: entitlement.seat_limit,
        until: entitlement.until.map(|until| When::new(until, now)),
        since_event: entitlement.since_event.map(|id| (event_path(&id), id)),
        overdue: entitlement.overdue,
        features,
        customers,
        subscriptions: subscriptions.into_iter().map(|row| subscription(row, now)).collect(),
        paging,
        history: Vec::new(),
        story: EventRow::all(&story.events, now),
        story_is_cut: story.is_cut,
    }
}

fn subscription(row: Row, now: DateTime<Utc>) -> Subscription {
    let state = &row.state;
    let times = [
        ("Current period from", state.current_period_start),
        ("Current period to", state.current_period_end),
        ("Trial ends", state.trial_end),
        ("To be canceled at", state.cancel_at),
        ("Canceled", state.canceled_at),
        ("Ended", state.ended_at),
        ("Ends", row.ends_at.filter(|_| state.ended_at.is_none())),
        ("Next payment attempt", row.latest_invoice.next_payment_attempt),
    ];
    let times = times.into_iter().filter_map(|(name, at)| Some((name, When::new(at?, now)))).collect();
    let invoice = &row.latest_invoice;
    let is_payable = matches!(
        invoice.latest_invoice_status.as_deref(),
        Some("open" | "payment_failed" | "action_required" | "uncollectible")
    );
    let pay_url = invoice.latest_invoice_url.clone().filter(|url| is_payable && url.starts_with("https://"));
    let invoice = invoice.latest_invoice_id.clone().zip(invoice.latest_invoice_status.as_deref());
    Subscription {
        id: row.stripe_subscription_id.clone(),
        badge: Badge::of_subscription(&state.status),
        invoice: invoice.map(|(id, status)| (id, Badge::of_invoice(status))),
        pay_url,
        items: state.items.as_array().into_iter().flatten().map(Item::read).collect(),
        times,
        last_event: row.as_of.last_event_id.as_ref().map(|id| (event_path(id), id.clone())),
        row,
    }
}
