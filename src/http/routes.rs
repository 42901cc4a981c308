//! Every path of the contract, and which methods it takes.

use std::future::ready;

use actix_web::guard::{Any, Get, Head};
use actix_web::http::Method;
use actix_web::http::header::{ACCEPT, ALLOW, ContentType, LOCATION};
use actix_web::web::{self, PathConfig, ServiceConfig};
use actix_web::{FromRequest, Handler, HttpRequest, HttpResponse, Resource, Responder, ResponseError, Route};

use super::{ApiError, WEBHOOK_PATH, accounts, admin, changes, error, events, health, metrics, openapi, webhook};

/// Sets up every route. Expects `web::Data<State>` in the app.
pub fn routes(config: &mut ServiceConfig) {
    config.app_data(PathConfig::default().error_handler(|_, _| ApiError::NotFound("such path").into()));
    for endpoint in endpoints() {
        config.service(endpoint.into_resource());
    }
    config.service(web::resource("/").route(web::route().guard(Any(Get()).or(Head())).to(root)).default_service(
        web::to(|| ready(ApiError::MethodNotAllowed.error_response().customize().insert_header((ALLOW, "GET, HEAD")))),
    ));
    config.configure(admin::routes).default_service(web::to(error::not_found));
}

/// `GET /`: leads browsers to the page, and tells others what this is.
async fn root(request: HttpRequest) -> HttpResponse {
    let accept = request.headers().get(ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    if accept.contains("text/html") {
        return HttpResponse::SeeOther().insert_header((LOCATION, "/admin")).finish();
    }
    HttpResponse::Ok().content_type(ContentType::plaintext()).body(format!(
        "subledger {}\n\n/admin         the page for people\n/openapi.json  this API\n/health        whether events can be \
         applied\n{WEBHOOK_PATH}  where Stripe delivers\n",
        env!("CARGO_PKG_VERSION")
    ))
}

fn endpoints() -> Vec<Endpoint> {
    vec![
        Endpoint::at(WEBHOOK_PATH).on(Method::POST, webhook::receive),
        Endpoint::at("/health").get(health::ready),
        Endpoint::at("/health/live").get(health::live),
        Endpoint::at("/events").get(events::list),
        Endpoint::at("/events/{id}").get(events::show),
        Endpoint::at("/events/{id}/replay").on(Method::POST, events::replay),
        Endpoint::at("/api/v1/accounts").get(accounts::list).on(Method::POST, accounts::create),
        Endpoint::at("/api/v1/accounts/{id}").get(accounts::show).on(Method::PATCH, accounts::change),
        Endpoint::at("/api/v1/changes").get(changes::list),
        Endpoint::at("/api/v1/changes/stream").get(changes::stream),
        Endpoint::at("/api/v1/accounts/{id}/customers/{customer}").on(Method::DELETE, accounts::unlink),
        Endpoint::at("/metrics").get(metrics::show),
        Endpoint::at("/openapi.json").get(openapi::show),
    ]
}

/// One path. Methods that it was not given are answered 405.
struct Endpoint {
    path: &'static str,
    methods: Vec<Method>,
    routes: Vec<Route>,
}

impl Endpoint {
    fn at(path: &'static str) -> Self {
        Self { path, methods: Vec::new(), routes: Vec::new() }
    }

    /// GET, and HEAD, which is GET without the body.
    fn get<F, Args>(mut self, handler: F) -> Self
    where
        F: Handler<Args, Output: Responder + 'static>,
        Args: FromRequest + 'static,
    {
        self.methods.extend([Method::GET, Method::HEAD]);
        self.routes.push(web::route().guard(Any(Get()).or(Head())).to(handler));
        self
    }

    fn on<F, Args>(mut self, method: Method, handler: F) -> Self
    where
        F: Handler<Args, Output: Responder + 'static>,
        Args: FromRequest + 'static,
    {
        self.methods.push(method.clone());
        self.routes.push(web::method(method).to(handler));
        self
    }

    fn into_resource(self) -> Resource {
        let allowed = self.methods.iter().map(Method::as_str).collect::<Vec<_>>().join(", ");
        let refuse = move || {
            ready(ApiError::MethodNotAllowed.error_response().customize().insert_header((ALLOW, allowed.as_str())))
        };
        let resource = web::resource(self.path).default_service(web::to(refuse));
        self.routes.into_iter().fold(resource, Resource::route)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_route_is_documented_and_nothing_else() {
        let document = serde_json::to_value(openapi::document()).unwrap();
        let mut documented = Vec::new();
        for (path, item) in document["paths"].as_object().unwrap() {
            documented.extend(item.as_object().unwrap().keys().map(|method| (path.clone(), method.to_uppercase())));
        }
        let mut routed: Vec<_> = endpoints()
            .into_iter()
            .flat_map(|Endpoint { path, methods, .. }| {
                methods.into_iter().map(move |method| (path.to_owned(), method.to_string()))
            })
            .filter(|(_, method)| method != "HEAD")
            .collect();
        // The page has its own routes, of which the contract knows this one.
        routed.push(("/admin".to_owned(), "GET".to_owned()));
        documented.sort();
        routed.sort();
        assert_eq!(documented, routed);
    }
}
