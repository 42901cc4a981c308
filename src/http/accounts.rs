//! Accounts: creating, reading and changing them.

use actix_web::http::header::LOCATION;
use actix_web::web::{Data, Path, Payload};
use actix_web::{HttpRequest, HttpResponse};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use uuid::Uuid;

use super::auth::Admin;
use super::{ApiError, State, body, views};
use crate::service::{AccountChange, Linked, NewAccount};

/// The longest name and customer id that is taken, in bytes.
const MAX_TEXT_BYTES: usize = 255;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CreateBody {
    id: Option<Uuid>,
    name: String,
    stripe_customer_id: Option<String>,
}

/// In a change, what is absent stays; null would have to unlink, and a customer stays linked.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ChangeBody {
    #[serde(default, deserialize_with = "not_null")]
    name: Option<String>,
    #[serde(default, deserialize_with = "not_null")]
    stripe_customer_id: Option<String>,
}

fn not_null<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    String::deserialize(deserializer).map(Some)
}

/// `POST /api/v1/accounts`.
pub async fn create(
    _: Admin,
    request: HttpRequest,
    payload: Payload,
    state: Data<State>,
) -> Result<HttpResponse, ApiError> {
    let CreateBody { id, name, stripe_customer_id } = json_body(&request, payload, &state).await?;
    check_text("name", &name, 0)?;
    check_customer(stripe_customer_id.as_deref())?;
    let account = NewAccount { id, name, customer: stripe_customer_id };
    let linked = state.service.create_account(account).await.map_err(ApiError::of_request)?;
    let id = done(linked)?;
    let view = find(&state, id).await?;
    Ok(HttpResponse::Created().insert_header((LOCATION, format!("/api/v1/accounts/{id}"))).json(views::account(&view)))
}

/// `GET /api/v1/accounts/{id}`.
pub async fn show(_: Admin, id: Path<String>, state: Data<State>) -> Result<HttpResponse, ApiError> {
    let view = find(&state, account_id(&id)?).await?;
    Ok(HttpResponse::Ok().json(views::account(&view)))
}

/// `PATCH /api/v1/accounts/{id}`.
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
    Ok(HttpResponse::Ok().json(views::account(&find(&state, id).await?)))
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
fn check_text(field: &str, text: &str, least: usize) -> Result<(), ApiError> {
    if text.contains('\0') || !(least..=MAX_TEXT_BYTES).contains(&text.len()) {
        return Err(ApiError::InvalidRequest(format!(
            "`{field}` must have {least} to {MAX_TEXT_BYTES} bytes and no NUL"
        )));
    }
    Ok(())
}
