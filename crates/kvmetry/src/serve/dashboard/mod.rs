//! The dashboard: pages within the program, and the JSON that they ask for.
//!
//! ```text
//!  browser ──/, /vm/…, /collector, /assets/…──▶ assets (built from web/)
//!          ──/api/fleet, /api/live────────────▶ board ──▶ fleet ─┐
//!          ──/api/vm/{uuid}───────────────────▶ vm ──────────────┼─sql─▶ source ──▶ store
//!          ──/api/collector───────────────────▶ collector ───────┘
//! ```
//!
//! What is asked of the source is SQL that InfluxDB 3 understands too, with values as parameters.

mod assets;
mod board;
mod collector;
mod fleet;
mod live;
mod parts;
mod schema;
mod source;
mod types;
mod vm;

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::{MethodRouter, get};
use axum::{Extension, Router};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};

use self::assets::Assets;
use self::board::{Board, Push};
pub(crate) use self::collector::Own;
pub(crate) use self::source::Source;
use self::source::SourceError;
pub(crate) use self::types::JournalState;
#[cfg(feature = "store")]
pub(crate) use self::types::StoreState;
use crate::clock::Clock;
use crate::collect::Statuses;
use crate::http::{BUSY_RETRY, Connection, Mount, Needs, Problem, READ, Turns, json};

/// Browsers that watch at once: each has one stream, whatever its tabs. More are told so; connections have a limit of
/// their own.
const MAX_WATCHERS: usize = 64;

/// The notices of what the pages are made with.
const LICENSES: &str = "/LICENSES.txt";

/// What the pages' answers are made of. `GET /api/session` is the port's: it knows the tokens.
pub(crate) struct Setup {
    pub(crate) source: Source,
    pub(crate) clock: Arc<dyn Clock>,
    /// How often this process reads its hypervisors.
    pub(crate) interval: Duration,
    /// Empty, or `/` and something.
    pub(crate) base_path: String,
    pub(crate) turns: Arc<Turns>,
    pub(crate) threads: Handle,
    /// The hypervisors that this process reads.
    pub(crate) statuses: Statuses,
    /// How this process fares. It waits for the disk.
    pub(crate) own: Box<dyn Fn() -> Own + Send + Sync>,
}

struct Dashboard {
    board: Arc<Board>,
    assets: Assets,
    watchers: Arc<Semaphore>,
    /// What those hear who find no place.
    full: watch::Sender<Option<Push>>,
    /// Names this run of the program.
    run: String,
    statuses: Statuses,
    own: Arc<dyn Fn() -> Own + Send + Sync>,
}

/// The pages and their API, for the port.
pub(crate) fn mounts(setup: Setup) -> Vec<Mount> {
    let Setup { source, clock, interval, base_path, turns, threads, statuses, own } = setup;
    let dashboard = Arc::new(Dashboard {
        board: Arc::new(Board::new(source, clock, interval, statuses.clone(), turns, threads)),
        assets: Assets::new(&base_path),
        watchers: Arc::new(Semaphore::new(MAX_WATCHERS)),
        full: watch::Sender::new(Some(Push {
            number: 0,
            fleet: None,
            trouble: Some(format!("{MAX_WATCHERS} browsers watch already: close one of them").into()),
        })),
        run: format!("{:016x}", fastrand::u64(..)),
        statuses,
        own: own.into(),
    });
    let mount = |prefix, needs, path: &str, handler: MethodRouter<Arc<Dashboard>>| Mount {
        prefix,
        needs,
        router: Router::new().route(path, handler).with_state(Arc::clone(&dashboard)),
    };
    // A page has no secrets, and shows the login.
    let page = |prefix, path, handler| mount(prefix, Needs::Nothing, path, handler);
    let api = |prefix, path, handler| mount(prefix, READ, path, handler);
    vec![
        page("/", "/", get(index)),
        page("/vm/", "/vm/{*uuid}", get(index)),
        page("/collector", "/collector", get(index)),
        page(LICENSES, LICENSES, get(licenses)),
        page("/assets/", "/assets/{*name}", get(asset)),
        api("/api/fleet", "/api/fleet", get(fleet)),
        api("/api/fleet/history", "/api/fleet/history", get(history)),
        api("/api/vm/", "/api/vm/{uuid}", get(vm_page)),
        api("/api/collector", "/api/collector", get(collector)),
        api("/api/live", "/api/live", get(live)),
    ]
}

type Shared = State<Arc<Dashboard>>;

async fn index(State(dashboard): Shared, request: Request) -> Response {
    dashboard.assets.index(request.headers())
}

async fn licenses(State(dashboard): Shared, request: Request) -> Response {
    dashboard.assets.file(&LICENSES[1..], request.headers())
}

async fn asset(State(dashboard): Shared, Path(name): Path<String>, request: Request) -> Response {
    dashboard.assets.file(&format!("assets/{name}"), request.headers())
}

async fn fleet(State(dashboard): Shared) -> Result<Response, Problem> {
    Ok(json(&*dashboard.board.fleet().await.map_err(failed)?))
}

async fn history(State(dashboard): Shared) -> Result<Response, Problem> {
    Ok(json(&*dashboard.board.history().await.map_err(failed)?))
}

async fn vm_page(
    State(dashboard): Shared,
    Path(uuid): Path<String>,
    request: Request,
) -> Result<Response, Problem> {
    let wanted = vm::Wanted::of(uuid, request.uri(), dashboard.board.now_ms())?;
    let (schema, interval) = dashboard.board.known().await.map_err(failed)?;
    let plan = vm::Plan::of(dashboard.board.source(), &schema, interval, wanted).map_err(failed)?;
    let turn = dashboard.board.turn().await.map_err(failed)?;
    let of = plan.parts();
    let make = async move |done: watch::Sender<usize>| {
        let told = |parts| {
            done.send_replace(parts);
        };
        let board = &dashboard.board;
        let page =
            vm::page(board.source(), &schema, plan, turn, board.fleet(), told).await.map_err(failed)?;
        page.ok_or_else(|| {
            Problem::new(
                StatusCode::NOT_FOUND,
                "no VM of this UUID was read in that time: it may be older, or of another server",
            )
        })
    };
    parts::answer(of, make).await
}

async fn collector(State(dashboard): Shared) -> Result<Response, Problem> {
    let own = Arc::clone(&dashboard.own);
    let own = tokio::task::spawn_blocking(move || own())
        .await
        .map_err(|error| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    let board = &dashboard.board;
    let written = async {
        let (fleet, schema) = (board.fleet().await?, board.schema().await?);
        let _turn = board.turn().await?;
        Ok((fleet, collector::rows(board.source(), &schema).await?))
    };
    let written = written.await;
    Ok(json(&collector::page(board.source(), written, own, &dashboard.statuses.now())))
}

async fn live(
    State(dashboard): Shared,
    Extension(connection): Extension<Connection>,
    request: Request,
) -> Result<Response, Problem> {
    // A browser does not see why a stream is refused: who finds no place is told on a stream.
    let place = Arc::clone(&dashboard.watchers).try_acquire_owned().ok();
    let pushes = match place {
        Some(_) => dashboard.board.watch().await,
        None => dashboard.full.subscribe(),
    };
    Ok(live::answer(pushes, &dashboard.run, request.headers(), connection, place))
}

fn failed(error: SourceError) -> Problem {
    let status = match error {
        SourceError::Empty => StatusCode::NOT_FOUND,
        SourceError::Busy => StatusCode::SERVICE_UNAVAILABLE,
        SourceError::TooSlow => StatusCode::GATEWAY_TIMEOUT,
        #[cfg(feature = "store")]
        SourceError::TooLarge => StatusCode::UNPROCESSABLE_ENTITY,
        SourceError::TooLong => StatusCode::UNPROCESSABLE_ENTITY,
        #[cfg(feature = "store")]
        SourceError::Unreadable(_) => StatusCode::BAD_GATEWAY,
        SourceError::Refused(_) => StatusCode::BAD_GATEWAY,
    };
    let is_busy = matches!(error, SourceError::Busy);
    let problem = Problem::new(status, format!("no answer from where the points are: {error}"));
    if is_busy { problem.retry_after(BUSY_RETRY) } else { problem }
}
