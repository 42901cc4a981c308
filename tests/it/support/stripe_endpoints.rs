//! The webhook endpoints of the stand-in for Stripe's API: created, updated and listed as Stripe does it.

use std::sync::{Arc, Mutex};

use actix_web::web::{Data, Form, Path, ServiceConfig};
use actix_web::{HttpRequest, HttpResponse, web};
use chrono::Utc;
use serde_json::{Value, json};

/// The names and values of a form.
pub type Fields = Vec<(String, String)>;

/// The endpoints that Stripe has, and what was asked for.
#[derive(Default)]
pub struct Endpoints {
    /// As Stripe shows them.
    pub list: Mutex<Vec<Value>>,
    /// v2 event destinations.
    pub destinations: Mutex<Vec<Value>>,
    /// The fields of every POST, with its path.
    pub posted: Mutex<Vec<(String, Fields)>>,
    /// The `Stripe-Version` of every request.
    pub versions: Mutex<Vec<Option<String>>>,
    date: Mutex<Option<String>>,
}

impl Endpoints {
    pub fn all(&self) -> Vec<Value> {
        self.list.lock().unwrap().clone()
    }

    /// Changes a field of the endpoint at `index`.
    pub fn set(&self, index: usize, field: &str, value: Value) {
        self.list.lock().unwrap()[index][field] = value;
    }

    /// Lists of endpoints are of this time, from now on.
    pub fn says_it_is(&self, time: chrono::DateTime<Utc>) {
        *self.date.lock().unwrap() = Some(time.format("%a, %d %b %Y %H:%M:%S GMT").to_string());
    }

    fn note(&self, request: &HttpRequest) {
        let version = request.headers().get("stripe-version").map(|value| value.to_str().unwrap().to_owned());
        self.versions.lock().unwrap().push(version);
    }
}

pub fn routes(endpoints: Arc<Endpoints>) -> impl FnOnce(&mut ServiceConfig) {
    move |config| {
        config
            .app_data(Data::from(endpoints))
            .service(web::resource("/v1/webhook_endpoints").route(web::get().to(list)).route(web::post().to(create)))
            .route("/v1/webhook_endpoints/{id}", web::post().to(update))
            .route("/v2/core/event_destinations", web::get().to(destinations));
    }
}

async fn list(request: HttpRequest, endpoints: Data<Endpoints>) -> HttpResponse {
    endpoints.note(&request);
    let data: Vec<_> = endpoints
        .all()
        .into_iter()
        .map(|mut endpoint| {
            // Shown only in the answer to its creation.
            endpoint.as_object_mut().unwrap().remove("secret");
            endpoint
        })
        .collect();
    let mut response = HttpResponse::Ok();
    if let Some(date) = endpoints.date.lock().unwrap().clone() {
        response.insert_header(("Date", date));
    }
    response.json(json!({"object": "list", "has_more": false, "url": "/v1/webhook_endpoints", "data": data}))
}

async fn destinations(request: HttpRequest, endpoints: Data<Endpoints>) -> HttpResponse {
    endpoints.note(&request);
    let data = endpoints.destinations.lock().unwrap().clone();
    HttpResponse::Ok().json(json!({"data": data, "next_page_url": null, "previous_page_url": null}))
}

async fn create(request: HttpRequest, Form(fields): Form<Fields>, endpoints: Data<Endpoints>) -> HttpResponse {
    endpoints.note(&request);
    let field = |name: &str| fields.iter().find(|(field, _)| field == name).map(|(_, value)| value.clone());
    let metadata: serde_json::Map<_, _> = fields
        .iter()
        .filter_map(|(name, value)| {
            Some((name.strip_prefix("metadata[")?.strip_suffix(']')?.to_owned(), value.clone().into()))
        })
        .collect();
    let mut list = endpoints.list.lock().unwrap();
    let number = list.len() + 1;
    let endpoint = json!({
        "id": format!("we_{number}"), "object": "webhook_endpoint", "api_version": field("api_version"),
        "application": null, "created": Utc::now().timestamp(), "description": field("description"),
        "enabled_events": types(&fields), "livemode": false, "metadata": metadata, "status": "enabled",
        "url": field("url"), "secret": format!("whsec_of_{number}"),
    });
    list.push(endpoint.clone());
    endpoints.posted.lock().unwrap().push((request.path().to_owned(), fields));
    HttpResponse::Ok().json(endpoint)
}

async fn update(
    request: HttpRequest,
    id: Path<String>,
    Form(fields): Form<Fields>,
    endpoints: Data<Endpoints>,
) -> HttpResponse {
    endpoints.note(&request);
    let mut list = endpoints.list.lock().unwrap();
    let Some(endpoint) = list.iter_mut().find(|endpoint| endpoint["id"] == *id) else {
        return HttpResponse::NotFound().json(json!({"error": {"message": "No such webhook endpoint"}}));
    };
    assert!(fields.iter().all(|(name, _)| name != "api_version" && name != "connect"), "Stripe changes neither");
    endpoint["enabled_events"] = types(&fields).into();
    if fields.contains(&("disabled".to_owned(), "false".to_owned())) {
        endpoint["status"] = "enabled".into();
    }
    let endpoint = endpoint.clone();
    endpoints.posted.lock().unwrap().push((request.path().to_owned(), fields));
    HttpResponse::Ok().json(endpoint)
}

fn types(fields: &[(String, String)]) -> Vec<String> {
    fields.iter().filter(|(name, _)| name == "enabled_events[]").map(|(_, value)| value.clone()).collect()
}
