//! Arrow Flight on the port: the store's service, within the turns of queries.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, HttpBody as _};
use axum::extract::Request;
use axum::http::StatusCode;
use axum::response::Response;
use http_body_util::{BodyStream, StreamBody};
use store::flight::{PATH, Service};
use tower::ServiceExt as _;

use super::connection::Connection;
use super::relay::relay;
use super::reply::Problem;
use super::{Mount, READ, Turns};

/// The service at its place. A client that takes nothing of an answer for so long (`within`) is cut off.
pub(crate) fn mount(service: Service, turns: Arc<Turns>, within: Duration) -> Mount {
    let service = tower::service_fn(move |request| {
        let (service, turns) = (service.clone(), Arc::clone(&turns));
        async move { Ok(answer(service, &turns, within, request).await) }
    });
    let router = Router::new().route_service(&format!("{PATH}{{*method}}"), service);
    Mount { prefix: PATH, needs: READ, router }
}

async fn answer(service: Service, turns: &Turns, within: Duration, request: Request) -> Response {
    let turn = match turns.next().await {
        Ok(turn) => turn,
        Err(error) => return Problem::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string()).into_grpc(),
    };
    let connection = request.extensions().get::<Connection>().cloned();
    let response = service.oneshot(request).await.unwrap_or_else(|never| match never {});
    let (parts, body) = response.into_parts();
    if body.is_end_stream() {
        // A refusal: its status is in the headers, and nothing may follow them.
        return Response::from_parts(parts, Body::empty());
    }
    // Frames, not bytes: the status comes in the trailers.
    let frames = relay(BodyStream::new(body), within, connection, turn);
    Response::from_parts(parts, Body::new(StreamBody::new(frames)))
}
