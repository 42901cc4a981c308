//! Accounts: creating, reading and changing them.

use actix_web::http::header::LOCATION;
use actix_web::web::{Data, Path, Payload};
use actix_web::{HttpMessage, HttpRequest, HttpResponse};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use utoipa::ToSchema;
use uuid::Uuid;

use super::auth::Admin;
use super::views::Account;
use super::{ApiError, State, body, openapi};
use crate::service::{AccountChange, Linked, NewAccount};

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
    #[schema(min_length = 1, max_length = 255, pattern = "^[^\\u0000]*$")]
    stripe_customer_id: Option<String>,
}

/// What to change about an account. What is absent stays.
// Null would have to unlink, and a customer stays linked.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = AccountChange)]
pub struct ChangeBody {
    #[serde(default, deserialize_with = "not_null")]
    #[schema(nullable = false, max_length = 255, pattern = "^[^\\u0000]*$")]
    name: Option<String>,
    /// A customer to link; what was parked for it is applied. The former one stays linked, as a further one.
    #[serde(default, deserialize_with = "not_null")]
    #[schema(nullable = false, min_length = 1, max_length = 255, pattern = "^[^\\u0000]*$")]
    stripe_customer_id: Option<String>,
}

fn not_null<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    String::deserialize(deserializer).map(Some)
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
    _: Admin,
    request: HttpRequest,
    payload: Payload,
    state: Data<State>,
) -> Result<HttpResponse, ApiError> {
    let CreateBody { id, name, stripe_customer_id } = json_body(&request, payload, &state).await?;
    check_text("name", &name, 0)?;
    check_customer(stripe_customer_id.as_deref())?;
    let account = NewAccount { id: id.unwrap_or_else(Uuid::new_v4), name, customer: stripe_customer_id };
    let linked = state.service.create_account(account).await.map_err(ApiError::of_request)?;
    let id = done(linked)?;
    let view = find(&state, id).await?;
    Ok(HttpResponse::Created().insert_header((LOCATION, format!("/api/v1/accounts/{id}"))).json(Account::from(view)))
}

/// `GET /api/v1/accounts/{id}`.
#[utoipa::path(
    get, path = "/api/v1/accounts/{id}", tag = "accounts", operation_id = "account",
    summary = "An account, its subscriptions, and what it is entitled to",
    params(("id" = Uuid, Path, description = "The account's id")),
    security(("bearer" = []), ("cookie" = [])),
    responses(
        (status = OK, description = "The account", body = Account),
        openapi::NotFound, openapi::AdminsOnly, openapi::Failures,
    ),
)]
pub async fn show(_: Admin, id: Path<String>, state: Data<State>) -> Result<HttpResponse, ApiError> {
    let view = find(&state, account_id(&id)?).await?;
    Ok(HttpResponse::Ok().json(Account::from(view)))
}

/// `PATCH /api/v1/accounts/{id}`.
#[utoipa::path(
    patch, path = "/api/v1/accounts/{id}", tag = "accounts", operation_id = "changeAccount",
    summary = "Rename an account, or link a customer",
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
    _: Admin,
    id: Path<String>,
    request: HttpRequest,
    payload: Payload,
    state: Data<State>,
) -> Result<HttpResponse, ApiError> {
    let id = account_id(&id)?;
    let ChangeBody { name, stripe_customer_id } = json_body(&request, payload, &state).await?;
    if let Some(name) = &name {
        check_text("name", name, 0)?;
    }
    check_customer(stripe_customer_id.as_deref())?;
    let change = AccountChange { id, name, customer: stripe_customer_id };
    done(state.service.change_account(change).await.map_err(ApiError::of_request)?)?;
    Ok(HttpResponse::Ok().json(Account::from(find(&state, id).await?)))
}

fn done(linked: Linked) -> Result<Uuid, ApiError> {
    match linked {
        Linked::Done(id) => Ok(id),
        Linked::NotFound => Err(ApiError::NotFound("account with this id")),
        Linked::IdTaken => Err(ApiError::Conflict("an account with this id exists already")),
        Linked::CustomerTaken => Err(ApiError::Conflict("the customer is linked to another account")),
    }
}

async fn find(state: &State, id: Uuid) -> Result<crate::service::AccountView, ApiError> {
    let view = state.service.account(id).await.map_err(ApiError::of_request)?;
    view.ok_or(ApiError::NotFound("account with this id"))
}

fn account_id(text: &str) -> Result<Uuid, ApiError> {
    Uuid::try_parse(text).map_err(|_| ApiError::NotFound("account with this id"))
}

async fn json_body<T: DeserializeOwned>(request: &HttpRequest, payload: Payload, state: &State) -> Result<T, ApiError> {
    let body = body::read(request, payload, state.body_limit, state.body_timeout).await?;
    // A page of another origin can send any other type without asking the browser first.
    if !request.content_type().trim_ascii().eq_ignore_ascii_case("application/json") {
        return Err(ApiError::InvalidRequest("the Content-Type of the body must be application/json".to_owned()));
    }
    // Serde would take an array of the fields' values, too.
    if !body.trim_ascii_start().starts_with(b"{") {
        return Err(ApiError::InvalidRequest("the body is no JSON object".to_owned()));
    }
    serde_json::from_slice(&body)
        .map_err(|error| ApiError::InvalidRequest(format!("the body is not as expected: {error}")))
}

fn check_customer(customer: Option<&str>) -> Result<(), ApiError> {
    customer.map_or(Ok(()), |customer| check_text("stripe_customer_id", customer, 1))
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
