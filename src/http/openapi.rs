//! The description of this API, made from the endpoints and their types: OpenAPI 3.1.
//!
//! Source: <https://spec.openapis.org/oas/v3.1.0>.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use actix_web::HttpResponse;
use actix_web::http::StatusCode;
use actix_web::http::header::ContentType;
use utoipa::openapi::header::HeaderBuilder;
use utoipa::openapi::path::{Operation, PathItem};
use utoipa::openapi::response::{Response, ResponseBuilder};
use utoipa::openapi::schema::{AllOfBuilder, ObjectBuilder, Type};
use utoipa::openapi::security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{ContentBuilder, OpenApi as Document, Ref, RefOr};
use utoipa::{IntoResponses, Modify, OpenApi, ToSchema};

use super::error::ErrorView;
use super::{accounts, changes, error, events, health, metrics, responses, webhook};

/// The cookie that `/admin` sets.
const SESSION_COOKIE: &str = "subledger_session";

const NO_HEADERS: &[(&str, Type, &str)] = &[];

/// Every error: its name here, its status, the codes that it can have, and headers that come with it.
const ERRORS: [ErrorKind; 12] = [
    ErrorKind {
        name: "InvalidDelivery",
        status: StatusCode::BAD_REQUEST,
        codes: &["invalid_signature", "invalid_payload", "invalid_request"],
        description: "The signature is absent, malformed, expired or wrong; or what is signed is no event; or the \
                      body broke off",
        headers: NO_HEADERS,
    },
    ErrorKind {
        name: "InvalidRequest",
        status: StatusCode::BAD_REQUEST,
        codes: &["invalid_request"],
        description: "A parameter or the body is not as described here",
        headers: NO_HEADERS,
    },
    ErrorKind {
        name: "Unauthorized",
        status: StatusCode::UNAUTHORIZED,
        codes: &["unauthorized"],
        description: "The admin token is absent or wrong",
        headers: &[("WWW-Authenticate", Type::String, "`Bearer`")],
    },
    ErrorKind {
        name: "Forbidden",
        status: StatusCode::FORBIDDEN,
        codes: &["forbidden"],
        description: "No `ADMIN_TOKEN` is configured, so nobody is an admin; or a page of another origin made a request \
                      that would change something with a session's cookie",
        headers: NO_HEADERS,
    },
    ErrorKind {
        name: "NotFound",
        status: StatusCode::NOT_FOUND,
        codes: &["not_found"],
        description: "There is none with this id",
        headers: NO_HEADERS,
    },
    ErrorKind {
        name: "MethodNotAllowed",
        status: StatusCode::METHOD_NOT_ALLOWED,
        codes: &["method_not_allowed"],
        description: "To any method that the path does not take",
        headers: &[("Allow", Type::String, "The methods that it takes")],
    },
    ErrorKind {
        name: "RequestTimeout",
        status: StatusCode::REQUEST_TIMEOUT,
        codes: &["request_timeout"],
        description: "The body did not arrive within `BODY_TIMEOUT_MS`",
        headers: NO_HEADERS,
    },
    ErrorKind {
        name: "Conflict",
        status: StatusCode::CONFLICT,
        codes: &["conflict"],
        description: "The id is taken, or the customer is linked to another account",
        headers: NO_HEADERS,
    },
    ErrorKind {
        name: "PayloadTooLarge",
        status: StatusCode::PAYLOAD_TOO_LARGE,
        codes: &["payload_too_large"],
        description: "The body is larger than `BODY_LIMIT_BYTES`",
        headers: NO_HEADERS,
    },
    ErrorKind {
        name: "EventFailed",
        status: StatusCode::INTERNAL_SERVER_ERROR,
        codes: &["event_failed", "internal"],
        description: "A handler or the commit failed; nothing of the event was kept but the failed attempt",
        headers: NO_HEADERS,
    },
    ErrorKind {
        name: "Internal",
        status: StatusCode::INTERNAL_SERVER_ERROR,
        codes: &["internal"],
        description: "Something went wrong; the log says what",
        headers: NO_HEADERS,
    },
    ErrorKind {
        name: "Unavailable",
        status: StatusCode::SERVICE_UNAVAILABLE,
        codes: &["unavailable"],
        description: "The database or Stripe's API is out of reach, or there was no connection in time",
        headers: &[("Retry-After", Type::Integer, "Seconds after which to come again")],
    },
];

struct ErrorKind {
    name: &'static str,
    status: StatusCode,
    codes: &'static [&'static str],
    description: &'static str,
    headers: &'static [(&'static str, Type, &'static str)],
}

impl ErrorKind {
    fn response(&self) -> Response {
        let code = ObjectBuilder::new().schema_type(Type::String).enum_values(Some(self.codes.iter().copied()));
        let error = ObjectBuilder::new().property("error", ObjectBuilder::new().property("code", code));
        let body = AllOfBuilder::new().item(Ref::from_schema_name("Error")).item(error);
        let response = ResponseBuilder::new()
            .description(self.description)
            .content("application/json", ContentBuilder::new().schema(Some(body)).build());
        let header = |schema_type: &Type, description: &str| {
            HeaderBuilder::new()
                .schema(Some(ObjectBuilder::new().schema_type(schema_type.clone())))
                .description(Some(description))
                .build()
        };
        self.headers
            .iter()
            .fold(response, |response, (name, schema_type, description)| {
                response.header(*name, header(schema_type, description))
            })
            .build()
    }
}

fn references(names: &[&str]) -> BTreeMap<String, RefOr<Response>> {
    ERRORS
        .iter()
        .filter(|error| names.contains(&error.name))
        .map(|error| (error.status.as_str().to_owned(), Ref::from_response_name(error.name).into()))
        .collect()
}

/// Sets of errors that endpoints name among their responses.
macro_rules! error_sets {
    ($($set:ident: $($name:literal),+;)+) => {$(
        pub struct $set;

        impl IntoResponses for $set {
            fn responses() -> BTreeMap<String, RefOr<Response>> {
                references(&[$($name),+])
            }
        }
    )+};
}

error_sets! {
    InvalidDelivery: "InvalidDelivery";
    InvalidRequest: "InvalidRequest";
    BodyRefused: "RequestTimeout", "PayloadTooLarge";
    AdminsOnly: "Unauthorized", "Forbidden";
    NotFound: "NotFound";
    Conflict: "Conflict";
    Internal: "Internal";
    Failures: "Internal", "Unavailable";
    EventFailures: "EventFailed", "Unavailable";
}

/// What of an event is required. All else is Stripe's: <https://docs.stripe.com/api/events/object>. Of both, 255 bytes
/// are the most; a schema can only count characters.
#[derive(ToSchema)]
#[expect(dead_code, reason = "it is read as bytes and JSON; this is for the schema")]
pub struct StripeEvent {
    #[schema(min_length = 1, max_length = 255)]
    id: String,
    #[schema(min_length = 1, max_length = 255)]
    r#type: String,
}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "subledger",
        description = "Keeps an application's subscriptions in step with Stripe.\n\nEvery answer has an \
                       `X-Request-Id`, which is also in the log. Where there is GET there is HEAD. Every error, also \
                       on paths that are none (404), has one form, `Error`.",
        license(name = "MIT OR Apache-2.0", identifier = "MIT OR Apache-2.0"),
    ),
    servers((url = "/")),
    tags(
        (name = "webhook", description = "For Stripe"),
        (name = "events", description = "What came in, and what became of it"),
        (name = "accounts", description = "The application's accounts and what they are entitled to"),
        (name = "changes", description = "What changed in the application's subscriptions"),
        (name = "health", description = "For those who watch over it"),
    ),
    paths(
        webhook::receive,
        health::ready,
        health::live,
        events::list,
        events::show,
        events::replay,
        accounts::list,
        accounts::create,
        accounts::show,
        accounts::change,
        accounts::unlink,
        changes::list,
        changes::stream,
        metrics::show,
        page,
        show,
    ),
    components(schemas(error::ErrorView, responses::Status)),
    modifiers(&Rest),
)]
struct Api;

/// What the endpoints do not say themselves.
struct Rest;

impl Modify for Rest {
    fn modify(&self, document: &mut Document) {
        let components = document.components.get_or_insert_default();
        for error in ERRORS {
            components.responses.insert(error.name.to_owned(), error.response().into());
        }
        let bearer = HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .description(Some("`ADMIN_TOKEN`, compared in constant time"))
            .build();
        components.add_security_scheme("bearer", SecurityScheme::Http(bearer));
        let cookie = ApiKeyValue::with_description(SESSION_COOKIE, "Set by `/admin` once the token was entered there");
        components.add_security_scheme("cookie", SecurityScheme::ApiKey(ApiKey::Cookie(cookie)));
        for operation in document.paths.paths.values_mut().flat_map(operations) {
            for (status, response) in references(&["MethodNotAllowed"]) {
                operation.responses.responses.entry(status).or_insert(response);
            }
        }
    }
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    [&mut item.get, &mut item.post, &mut item.patch, &mut item.delete].into_iter().flatten()
}

/// `GET /admin`. Its errors are HTML for whoever accepts that, and otherwise like all others.
#[utoipa::path(
    get, path = "/admin", tag = "health", operation_id = "page",
    summary = "The page for people",
    security(("bearer" = []), ("cookie" = [])),
    responses(
        (status = OK, description = "The page", body = String, content_type = "text/html"),
        (status = UNAUTHORIZED, description = "The form that asks for the token",
         content((String = "text/html"), (ErrorView = "application/json"))),
        (status = FORBIDDEN, description = "No `ADMIN_TOKEN` is configured",
         content((String = "text/html"), (ErrorView = "application/json"))),
        (status = METHOD_NOT_ALLOWED, description = "To any method that the path does not take",
         content((String = "text/html"), (ErrorView = "application/json")),
         headers(("Allow" = String, description = "The methods that it takes"))),
        (status = INTERNAL_SERVER_ERROR, description = "Something went wrong; the log says what",
         content((String = "text/html"), (ErrorView = "application/json"))),
        (status = SERVICE_UNAVAILABLE, description = "The database is out of reach",
         content((String = "text/html"), (ErrorView = "application/json")),
         headers(("Retry-After" = u32, description = "Seconds after which to come again"))),
    ),
)]
#[expect(dead_code, reason = "documents what the page itself answers")]
fn page() {}

/// The description as a value.
pub fn document() -> Document {
    Api::openapi()
}

/// `GET /openapi.json`.
#[utoipa::path(
    get, path = "/openapi.json", tag = "health", operation_id = "openapi",
    summary = "This description",
    responses((status = OK, description = "OpenAPI 3.1", body = Object, content_type = "application/json")),
)]
pub async fn show() -> Result<HttpResponse, error::ApiError> {
    // It is the same for as long as the process lives.
    static TEXT: LazyLock<Option<String>> = LazyLock::new(|| document().to_json().ok());
    let text = TEXT.as_deref().ok_or(error::ApiError::Internal)?;
    Ok(HttpResponse::Ok().content_type(ContentType::json()).body(text))
}
