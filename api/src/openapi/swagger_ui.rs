//! `GET /docs`: Swagger UI with the document. All files are in this binary, and the page's content security policy lets the
//! browser contact no other server.

use crate::app::App;
use crate::http::problem::Problem;
use axum::Extension;
use axum::extract::Request;
use axum::http::{HeaderName, StatusCode, Uri, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use swagger_ui_dist::{ApiDefinition, OpenApiSource};
use tower::ServiceExt as _;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

const PAGE: &str = r#"<!DOCTYPE html>
<html lang="en">
<head>
  <meta charset="utf-8">
  <meta name="viewport" content="width=device-width, initial-scale=1">
  <title>cTrip API</title>
  <link rel="icon" href="data:,">
  <link rel="stylesheet" href="/docs/swagger-ui.css">
</head>
<body>
  <div id="ui"></div>
  <script src="/docs/swagger-ui-bundle.js"></script>
  <script src="/docs/start.js"></script>
</body>
</html>
"#;
// Without the validator, which is an online service.
const START: &str = r##"SwaggerUIBundle({ url: "/openapi.json", dom_id: "#ui", deepLinking: true, validatorUrl: null, persistAuthorization: false });
"##;
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; \
                      connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The page and its files. The files are not in the document: only the page needs them.
pub fn routes() -> OpenApiRouter<App> {
    let files = swagger_ui_dist::generate_routes(ApiDefinition {
        uri_prefix: "/docs",
        api_definition: OpenApiSource::Uri("/openapi.json"),
        title: None,
    });
    OpenApiRouter::default()
        .routes(routes!(page))
        .route("/docs/start.js", get(|| async { ([(header::CONTENT_TYPE, "text/javascript")], START) }))
        .route("/docs/{file}", get(file).layer(Extension(Files(files))))
}

/// Swagger UI's own routes.
#[derive(Clone)]
struct Files(axum::Router);

/// `GET /docs`
#[utoipa::path(
    get, path = "/docs", tag = "service", summary = "Browse this document and try it out",
    responses((status = 200, description = "A page for browsers.", body = String, content_type = "text/html")),
)]
async fn page() -> Response {
    ([(header::CONTENT_SECURITY_POLICY, POLICY), (HeaderName::from_static("referrer-policy"), "no-referrer")], Html(PAGE))
        .into_response()
}

async fn file(uri: Uri, Extension(Files(files)): Extension<Files>, request: Request) -> Response {
    let response = match files.oneshot(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    };
    if response.status() == StatusCode::NOT_FOUND {
        return Problem::not_found(format_args!("There is no {}", base::text::excerpt(uri.path()))).into_response();
    }
    response
}
