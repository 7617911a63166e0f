//! Arrow Flight on the port: the store's service, within the turns of queries.

use std::convert::Infallible;
use std::fmt::Display;
use std::sync::Arc;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Request;
use axum::http::StatusCode;
use axum::response::Response;
use axum::{BoxError, Router};
use http_body_util::BodyStream;
use store::flight::PATH;
use tower::{Service, ServiceExt as _};

use super::body::{Bodies, BodyFault};
use super::connection::Connection;
use super::limits::{Limits, MAX_FLIGHT_BYTES};
use super::relay::{TooManyQueries, Turn, relay};
use super::reply::Problem;
use super::{Mount, READ, Turns};

/// The service at its place. What it is asked is received whole before a turn is taken for it: else one who never sends
/// the rest would hold that turn.
pub(crate) fn mount<S, B>(service: S, turns: Arc<Turns>, limits: &Limits) -> Mount
where
    S: Service<Request, Response = Response<B>, Error = Infallible> + Clone + Send + Sync + 'static,
    S::Future: Send,
    B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<BoxError> + Display + Send + 'static,
{
    let bodies = Arc::new(Bodies::new(limits.questions_bytes, limits));
    let service = tower::service_fn(move |request: Request| {
        let (service, bodies, turns) = (service.clone(), Arc::clone(&bodies), Arc::clone(&turns));
        async move {
            let connection = request.extensions().get::<Connection>().cloned();
            let (turn, response) = match answer(service, &bodies, &turns, request).await {
                Ok(answered) => answered,
                Err(problem) => return Ok(problem.into_grpc()),
            };
            let (parts, body) = response.into_parts();
            if body.is_end_stream() {
                // A refusal: its status is in the headers, and nothing may follow them.
                return Ok(Response::from_parts(parts, Body::empty()));
            }
            // Frames, not bytes: the status comes in the trailers.
            Ok(Response::from_parts(parts, relay(BodyStream::new(body), connection, turn)))
        }
    });
    let router = Router::new().route_service(&format!("{PATH}{{*method}}"), service);
    Mount { prefix: PATH, needs: READ, router }
}

async fn answer<S, B>(
    service: S,
    bodies: &Bodies,
    turns: &Turns,
    request: Request,
) -> Result<(Turn, Response<B>), Problem>
where
    S: Service<Request, Response = Response<B>, Error = Infallible>,
{
    let (parts, body) = request.into_parts();
    let request = Request::from_parts(parts.clone(), body);
    let held = bodies.read(request, MAX_FLIGHT_BYTES).await.map_err(BodyFault::problem)?;
    let busy = |error: TooManyQueries| Problem::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string());
    let turn = turns.next().await.map_err(busy)?;
    let request = Request::from_parts(parts, Body::from(held.bytes));
    let response = service.oneshot(request).await.unwrap_or_else(|never| match never {});
    Ok((turn, response))
}
