//! One account: whether it is entitled and why, its customers and unlinking one, its subscriptions, its story.

use actix_web::http::StatusCode;
use actix_web::web::{Data, Path, Payload, Query};
use actix_web::{HttpRequest, HttpResponse};
use askama::Template;
use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde_json::Value;
use uuid::Uuid;

use super::changes::ChangeRow;
use super::error::PageError;
use super::format::{Badge, EventRow, When, account_path, event_path};
use super::page::{Done, Here, Notice, Page, Viewer, form, html, see_other};
use super::paging::{Paging, SubscriptionsQuery, page_of};
use crate::db::subscriptions::Row;
use crate::http::{ApiError, State};
use crate::service::{AccountView, Story, Unlinked, Unlinking};

#[derive(Template)]
#[template(path = "account.html")]
struct AccountPage {
    page: Page,
    notice: Option<Notice>,
    id: Uuid,
    name: String,
    created: When,
    /// How many of its events fail, if any: what stands here may lack what they say.
    failing: Option<String>,
    /// Whether the account is entitled until a time that has passed.
    is_overdue: bool,
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
    done: Result<Query<Done>, actix_web::Error>,
    state: Data<State>,
) -> Result<HttpResponse, PageError> {
    let view = find(&state, &id).await?;
    let id = view.account.id;
    let (view, story) = state.service.story_of_account(view).await.map_err(ApiError::of_request)?;
    let query = query.map(Query::into_inner).unwrap_or_default();
    let done = done.map(Query::into_inner).unwrap_or_default();
    let changes = state.service.changes_of_account(id).await.map_err(ApiError::of_request)?;
    let now = Utc::now();
    let page = account_page(&viewer, view, &story, query, &done, now);
    Ok(html(StatusCode::OK, &AccountPage { history: ChangeRow::all(&changes, now), ..page }))
}

async fn find(state: &State, id: &str) -> Result<AccountView, PageError> {
    let unknown = ApiError::NotFound("account with this id");
    let Ok(id) = Uuid::try_parse(id) else { return Err(unknown.into()) };
    Ok(state.service.account(id).await.map_err(ApiError::of_request)?.ok_or(unknown)?)
}

fn name_of(view: &AccountView) -> String {
    let name = &view.account.name;
    if name.trim().is_empty() { "Account without a name".to_owned() } else { name.clone() }
}

fn account_page(
    viewer: &Viewer,
    view: AccountView,
    story: &Story,
    query: SubscriptionsQuery,
    done: &Done,
    now: DateTime<Utc>,
) -> AccountPage {
    let name = name_of(&view);
    let AccountView { account, customers, subscriptions, features, entitlement } = view;
    let (subscriptions, paging) = page_of(account.id, subscriptions, query);
    let failing = story.events.iter().filter(|event| event.status == "failed").count();
    let is_overdue = entitlement.entitled && entitlement.until.is_some_and(|until| until < now);
    AccountPage {
        page: viewer.page(name.clone(), Here::Accounts),
        notice: notice(done),
        id: account.id,
        name,
        created: When::new(account.created_at, now),
        failing: match failing {
            0 => None,
            1 => Some("1 event of this account is failing".to_owned()),
            more => Some(format!("{more} events of this account are failing")),
        },
        is_overdue,
        entitled: entitlement.entitled,
        tone: match (entitlement.entitled, is_overdue || failing > 0) {
            (true, false) => "applied",
            (true, true) => "parked",
            (false, _) => "failed",
        },
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

fn notice(done: &Done) -> Option<Notice> {
    let (tone, text) = match done.done.as_str() {
        "unlinked" => ("applied", "The customer is unlinked. What its events did stays."),
        "not-linked" => ("ignored", "The customer was not linked to this account."),
        _ => return None,
    };
    Some(Notice { tone, text: text.to_owned() })
}

/// The page that asks back before a customer is unlinked.
#[derive(Template)]
#[template(path = "unlink.html")]
struct UnlinkPage {
    page: Page,
    name: String,
    path: String,
    customer: String,
}

/// The query of that page.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct UnlinkQuery {
    customer: String,
}

/// `GET /admin/accounts/{id}/unlink`: asks back.
pub async fn confirm_unlinking(
    viewer: Viewer,
    id: Path<String>,
    query: Result<Query<UnlinkQuery>, actix_web::Error>,
    state: Data<State>,
) -> Result<HttpResponse, PageError> {
    let view = find(&state, &id).await?;
    let path = account_path(view.account.id);
    let UnlinkQuery { customer } = query.map(Query::into_inner).unwrap_or_default();
    if !view.customers.contains(&customer) {
        return Ok(see_other(&path));
    }
    let page = viewer.page("Unlink a customer", Here::Accounts);
    Ok(html(StatusCode::OK, &UnlinkPage { page, name: name_of(&view), path, customer }))
}

#[derive(Deserialize)]
struct UnlinkFields {
    #[serde(default)]
    csrf: String,
    customer: String,
}

/// `POST /admin/accounts/{id}/unlink`.
pub async fn unlink(
    viewer: Viewer,
    id: Path<String>,
    request: HttpRequest,
    payload: Payload,
    state: Data<State>,
) -> Result<HttpResponse, PageError> {
    let UnlinkFields { csrf, customer } = form(&request, payload, &state).await?;
    viewer.check(&csrf)?;
    let view = find(&state, &id).await?;
    let id = view.account.id;
    let done = if view.customers.contains(&customer) {
        let unlinking = Unlinking { id, name: None, customer: Some(customer) };
        match state.service.unlink_customer(unlinking).await.map_err(ApiError::of_request)? {
            Unlinked::Done => "unlinked",
            Unlinked::NotFound | Unlinked::NotLinked => "not-linked",
        }
    } else {
        "not-linked"
    };
    Ok(see_other(&format!("{}?done={done}", account_path(id))))
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
