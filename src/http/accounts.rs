//! Accounts: listing, creating, reading and changing them, and unlinking customers.

use actix_web::http::header::LOCATION;
use actix_web::web::{Data, Path, Payload, Query};
use actix_web::{HttpMessage, HttpRequest, HttpResponse};
use chrono::{DateTime, Utc};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::auth::Admin;
use super::events::limit;
use super::responses::{Account, Accounts};
use super::{ApiError, State, limits, openapi};
use crate::service::{AccountChange, Linked, NewAccount, Unlinked, Unlinking};

/// The longest name and customer id that is taken, in characters.
const MAX_TEXT_CHARS: usize = 255;

/// An account to create.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = NewAccount)]
pub struct CreateBody {
    /// Made up where it is absent.
    id: Option<Uuid>,
    #[schema(max_length = 255, pattern = "^[^\\u0000]*$")]
    name: String,
    /// A customer to link; what was parked for it is applied.
    #[schema(max_length = 255, pattern = "^(cus|acct)_[A-Za-z0-9_-]+$")]
    stripe_customer_id: Option<String>,
}

/// What to change about an account. What is absent stays.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = AccountChange)]
pub struct ChangeBody {
    #[serde(default, deserialize_with = "not_null")]
    #[schema(nullable = false, max_length = 255, pattern = "^[^\\u0000]*$")]
    name: Option<String>,
    /// A customer to link; what was parked for it is applied. The former one stays linked, as a further one. Null
    /// unlinks the customer that stands in the account: rows that its events made stay, and follow their events.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<String>, max_length = 255, pattern = "^(cus|acct)_[A-Za-z0-9_-]+$")]
    stripe_customer_id: Option<Option<String>>,
}

/// The query of an account.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ShowQuery {
    /// Show the subscriptions, and what the account was entitled to, as of this time (RFC 3339). `name`,
    /// `stripe_customer_ids` and `features` have no history: they are those of today.
    #[param(nullable = false, value_type = Option<DateTime<Utc>>)]
    at: Option<String>,
}

/// A time of RFC 3339, from the years that PostgreSQL knows.
fn time(text: &str) -> Result<DateTime<Utc>, ApiError> {
    // A plus sign that was not encoded arrives as a space.
    let time = DateTime::parse_from_rfc3339(&text.replace(' ', "+"));
    time.map(|time| time.to_utc()).map_err(|_| ApiError::InvalidRequest("`at` is no time of RFC 3339".to_owned()))
}

fn not_null<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    String::deserialize(deserializer).map(Some)
}

/// Tells null from what is absent.
fn given<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Option<String>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

/// The query of the list.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListQuery {
    /// Only accounts whose name contains this, in any case, or to which this id belongs: of the account itself, of one
    /// of its customers, or of one of its subscriptions at Stripe.
    #[param(nullable = false, min_length = 1, max_length = 255)]
    q: Option<String>,
    /// The most accounts to answer.
    #[param(nullable = false, value_type = Option<u8>, minimum = 1, maximum = 100, default = 20)]
    limit: Option<String>,
    /// Only accounts that come behind this one in the list: the last id of the page before.
    #[param(nullable = false, value_type = Option<Uuid>)]
    starting_after: Option<String>,
}

/// `GET /api/v1/accounts`.
#[utoipa::path(
    get, path = "/api/v1/accounts", tag = "accounts", operation_id = "accounts",
    summary = "Accounts, newest first",
    params(ListQuery),
    security(("bearer" = []), ("cookie" = [])),
    responses(
        (status = OK, description = "A page of accounts", body = Accounts),
        openapi::InvalidRequest, openapi::AdminsOnly, openapi::Failures,
    ),
)]
pub async fn list(
    _: Admin,
    query: Result<Query<ListQuery>, actix_web::Error>,
    state: Data<State>,
) -> Result<HttpResponse, ApiError> {
    let Query(query) = query.map_err(|error| ApiError::InvalidRequest(error.to_string()))?;
    let limit = limit(query.limit.as_deref())?;
    query.q.as_deref().map_or(Ok(()), |text| check_text("q", text, 1))?;
    let unknown = || ApiError::InvalidRequest("`starting_after` is no account's id".to_owned());
    let after = query.starting_after.map(|id| Uuid::try_parse(&id).map_err(|_| unknown())).transpose()?;
    let page = state.service.accounts(query.q, after, limit).await.map_err(ApiError::of_request)?;
    Ok(HttpResponse::Ok().json(Accounts::from(page.ok_or_else(unknown)?)))
}

/// `POST /api/v1/accounts`.
#[utoipa::path(
    post, path = "/api/v1/accounts", tag = "accounts", operation_id = "createAccount",
    summary = "Create an account",
    request_body = CreateBody,
    security(("bearer" = []), ("cookie" = [])),
    responses(
        (status = CREATED, description = "The account, with all that was parked for it applied", body = Account,
         headers(("Location" = String, description = "The account's path"))),
        openapi::InvalidRequest, openapi::BodyRefused, openapi::Conflict, openapi::AdminsOnly, openapi::Failures,
    ),
)]
pub async fn create(
    admin: Admin,
    request: HttpRequest,
    payload: Payload,
    state: Data<State>,
) -> Result<HttpResponse, ApiError> {
    let CreateBody { id, name, stripe_customer_id } = json_body(admin, &request, payload, &state).await?;
    check_text("name", &name, 0)?;
    check_customer(stripe_customer_id.as_deref())?;
    let account = NewAccount { id: id.unwrap_or_else(Uuid::new_v4), name, customer: stripe_customer_id };
    let linked = state.service.create_account(account).await.map_err(ApiError::of_request)?;
    let id = done(linked)?;
    let account = find(&state, id).await?;
    Ok(HttpResponse::Created().insert_header((LOCATION, format!("/api/v1/accounts/{id}"))).json(account))
}

/// `GET /api/v1/accounts/{id}`.
#[utoipa::path(
    get, path = "/api/v1/accounts/{id}", tag = "accounts", operation_id = "account",
    summary = "An account, its subscriptions, and what it is entitled to",
    params(("id" = Uuid, Path, description = "The account's id"), ShowQuery),
    security(("bearer" = []), ("cookie" = [])),
    responses(
        (status = OK, description = "The account", body = Account),
        openapi::InvalidRequest, openapi::NotFound, openapi::AdminsOnly, openapi::Failures,
    ),
)]
pub async fn show(
    _: Admin,
    id: Path<String>,
    query: Result<Query<ShowQuery>, actix_web::Error>,
    state: Data<State>,
) -> Result<HttpResponse, ApiError> {
    let Query(query) = query.map_err(|error| ApiError::InvalidRequest(error.to_string()))?;
    let id = account_id(&id)?;
    let account = match query.at.as_deref().map(time).transpose()? {
        None => find(&state, id).await?,
        Some(at) => {
            let view = state.service.account_at(id, at).await.map_err(ApiError::of_request)?;
            Account::from(view.ok_or(ApiError::NotFound("account with this id at this time"))?)
        }
    };
    Ok(HttpResponse::Ok().json(account))
}

/// `PATCH /api/v1/accounts/{id}`.
#[utoipa::path(
    patch, path = "/api/v1/accounts/{id}", tag = "accounts", operation_id = "changeAccount",
    summary = "Rename an account, or link or unlink a customer",
    params(("id" = Uuid, Path, description = "The account's id")),
    request_body = ChangeBody,
    security(("bearer" = []), ("cookie" = [])),
    responses(
        (status = OK, description = "The account as it is now", body = Account),
        openapi::InvalidRequest, openapi::BodyRefused, openapi::NotFound, openapi::Conflict, openapi::AdminsOnly,
        openapi::Failures,
    ),
)]
pub async fn change(
    admin: Admin,
    id: Path<String>,
    request: HttpRequest,
    payload: Payload,
    state: Data<State>,
) -> Result<HttpResponse, ApiError> {
    let id = account_id(&id)?;
    let ChangeBody { name, stripe_customer_id } = json_body(admin, &request, payload, &state).await?;
    if let Some(name) = &name {
        check_text("name", name, 0)?;
    }
    if let Some(None) = stripe_customer_id {
        unlink_customer(&state, Unlinking { id, name, customer: None }).await?;
    } else {
        let customer = stripe_customer_id.flatten();
        check_customer(customer.as_deref())?;
        let change = AccountChange { id, name, customer };
        done(state.service.change_account(change).await.map_err(ApiError::of_request)?)?;
    }
    Ok(HttpResponse::Ok().json(find(&state, id).await?))
}

/// `DELETE /api/v1/accounts/{id}/customers/{customer}`.
#[utoipa::path(
    delete, path = "/api/v1/accounts/{id}/customers/{customer}", tag = "accounts", operation_id = "unlinkCustomer",
    summary = "Unlink a customer from an account",
    description = "What the customer's events did stays: rows of its subscriptions remain with the account and follow \
                   their events. Events of further subscriptions are parked until the customer is linked again.",
    params(
        ("id" = Uuid, Path, description = "The account's id"),
        ("customer" = String, Path, description = "The customer's id at Stripe"),
    ),
    security(("bearer" = []), ("cookie" = [])),
    responses(
        (status = OK, description = "The account as it is now", body = Account),
        openapi::NotFound, openapi::AdminsOnly, openapi::Failures,
    ),
)]
pub async fn unlink(_: Admin, path: Path<(String, String)>, state: Data<State>) -> Result<HttpResponse, ApiError> {
    let (id, customer) = path.into_inner();
    let id = account_id(&id)?;
    unlink_customer(&state, Unlinking { id, name: None, customer: Some(customer) }).await?;
    Ok(HttpResponse::Ok().json(find(&state, id).await?))
}

async fn unlink_customer(state: &State, unlinking: Unlinking) -> Result<(), ApiError> {
    let not_linked = ApiError::NotFound("customer with this id that is linked to the account");
    // PostgreSQL's text cannot hold a NUL.
    if unlinking.customer.as_ref().is_some_and(|customer| customer.contains('\0')) {
        return Err(not_linked);
    }
    match state.service.unlink_customer(unlinking).await.map_err(ApiError::of_request)? {
        Unlinked::Done => Ok(()),
        Unlinked::NotFound => Err(ApiError::NotFound("account with this id")),
        Unlinked::NotLinked => Err(not_linked),
    }
}

fn done(linked: Linked) -> Result<Uuid, ApiError> {
    match linked {
        Linked::Done(id) => Ok(id),
        Linked::NotFound => Err(ApiError::NotFound("account with this id")),
        Linked::IdTaken => Err(ApiError::Conflict("an account with this id exists already")),
        Linked::CustomerTaken => Err(ApiError::Conflict("the customer is linked to another account")),
    }
}

async fn find(state: &State, id: Uuid) -> Result<Account, ApiError> {
    let view = state.service.account(id).await.map_err(ApiError::of_request)?;
    let view = view.ok_or(ApiError::NotFound("account with this id"))?;
    let parked = state.service.parked_for_account(id).await.map_err(ApiError::of_request)?;
    Ok(Account::from(view).with_parked(parked))
}

fn account_id(text: &str) -> Result<Uuid, ApiError> {
    Uuid::try_parse(text).map_err(|_| ApiError::NotFound("account with this id"))
}

async fn json_body<T: DeserializeOwned>(
    admin: Admin,
    request: &HttpRequest,
    payload: Payload,
    state: &State,
) -> Result<T, ApiError> {
    let body = limits::read(request, payload, state.body_limit, state.body_timeout).await?;
    // A page of another origin can send any other type, or none, without asking the browser first.
    let content_type = request.content_type().trim_ascii();
    let may_lack_type = content_type.is_empty() && !admin.by_cookie;
    if !may_lack_type && !content_type.eq_ignore_ascii_case("application/json") {
        return Err(ApiError::InvalidRequest("the Content-Type of the body must be application/json".to_owned()));
    }
    // Serde would take an array of the fields' values, too.
    if !body.trim_ascii_start().starts_with(b"{") {
        return Err(ApiError::InvalidRequest("the body is no JSON object".to_owned()));
    }
    serde_json::from_slice(&body)
        .map_err(|error| ApiError::InvalidRequest(format!("the body is not as expected: {error}")))
}

/// Stripe's ids of customers begin with `cus_`; an account may stand in place of a customer, as `acct_…`.
fn check_customer(customer: Option<&str>) -> Result<(), ApiError> {
    let Some(customer) = customer else { return Ok(()) };
    check_text("stripe_customer_id", customer, 1)?;
    let rest = customer.strip_prefix("cus_").or_else(|| customer.strip_prefix("acct_")).unwrap_or_default();
    let is_id = !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte));
    if is_id {
        Ok(())
    } else {
        Err(ApiError::InvalidRequest("`stripe_customer_id` must be a customer's id, cus_… or acct_…".to_owned()))
    }
}

/// PostgreSQL's text cannot hold a NUL.
pub fn check_text(field: &str, text: &str, least: usize) -> Result<(), ApiError> {
    if text.contains('\0') || !(least..=MAX_TEXT_CHARS).contains(&text.chars().count()) {
        return Err(ApiError::InvalidRequest(format!(
            "`{field}` must have {least} to {MAX_TEXT_CHARS} characters and no NUL"
        )));
    }
    Ok(())
}
