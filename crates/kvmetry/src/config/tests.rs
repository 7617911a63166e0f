//! The configurations in `tests/configs`: those in `valid` mean what is said here, those in `invalid` begin with
//! the messages that they must give (`# expect: LINE: message`; one that ends in `: ` is only the beginning).

use super::keys::DEFAULT_URI;
use super::*;

fn folder() -> PathBuf {
    Path::new(&std::env::var_os("CARGO_MANIFEST_DIR").unwrap()).join("tests/configs")
}

fn load(file: &str) -> Result<Config, ConfigError> {
    Config::from_parts(Some(&folder().join(file)), &[], &Flags::default())
}

fn with(variables: &[(&str, &str)], flags: &Flags, file: Option<&str>) -> Result<Config, ConfigError> {
    let variables: Vec<_> =
        variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    Config::from_parts(file.map(|file| folder().join(file)).as_deref(), &variables, flags)
}

fn defaults() -> Config {
    Config {
        file: None,
        hypervisors: vec![default_hypervisor(DEFAULT_URI)],
        device_cache_ttl: Duration::from_secs(300),
        tag_style: TagStyle::Dashboard,
        host_tag: true,
        memory_source: MemorySource::Auto,
        angle_scale_kb_per_sec: 1024.0,
        data_dir: default_data_dir(&[]),
        journal: Journal { max_size: 2 << 30, max_age: Duration::from_secs(7 * 86_400) },
        store: Store {
            enabled: cfg!(feature = "store"),
            retention: Duration::from_secs(30 * 86_400),
            devices_retention: Duration::from_secs(7 * 86_400),
            minutes_retention: Duration::from_secs(30 * 86_400),
            hours_retention: Duration::from_secs(400 * 86_400),
            max_size: None,
            min_free: None,
            no_rollups: Vec::new(),
        },
        influxdb: Vec::new(),
        outputs: Vec::new(),
        http: default_http(),
        warnings: Vec::new(),
    }
}

fn default_http() -> Http {
    Http {
        listen: Some("127.0.0.1:8177".parse().unwrap()),
        base_path: String::new(),
        allowed_hosts: Vec::new(),
        tls: None,
        tokens: None,
        open_health: false,
        insecure_no_auth: false,
    }
}

fn default_hypervisor(uri: &str) -> Hypervisor {
    Hypervisor {
        uri: uri.to_owned(),
        name: None,
        interval: Duration::from_secs(5),
        deadline: Duration::from_secs(2),
        max_abandoned: 4,
        balloon_period: Duration::ZERO,
        older_calls: false,
    }
}

fn server(url: &str) -> InfluxDb {
    InfluxDb {
        url: url.to_owned(),
        api: Api::V3,
        database: DATABASE.to_owned(),
        retention: Duration::from_secs(30 * 86_400),
        devices_database: None,
        devices_retention: Duration::from_secs(7 * 86_400),
        org: None,
        token_file: None,
        ca: None,
    }
}

#[test]
fn nothing_configured_is_the_local_libvirt() {
    assert_eq!(with(&[], &Flags::default(), None).unwrap(), defaults());
    let file = Some(folder().join("valid/empty.toml"));
    assert_eq!(load("valid/empty.toml").unwrap(), Config { file, ..defaults() });
}

#[test]
fn the_sample_means_the_defaults() {
    let folder = tempfile::tempdir().unwrap();
    let read = |text: &str| {
        let path = folder.path().join("kvmetry.toml");
        std::fs::write(&path, text).unwrap();
        Config::from_parts(Some(&path), &[], &Flags::default())
            .map(|config| Config { file: None, ..config })
            .unwrap_or_else(|error| panic!("{error}\n{text}"))
    };
    assert_eq!(read(&sample()), defaults());

    // Every key there is, with its default.
    let uncommented: String = sample()
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(rest) if !rest.starts_with(' ') => format!("{rest}\n"),
            _ => format!("{line}\n"),
        })
        .collect();
    let keys = uncommented.lines().filter(|line| !line.starts_with('#') && line.contains(" = ")).count();
    assert_eq!(keys, SECTIONS.iter().map(|section| section.keys.len()).sum::<usize>());
    let example = server("http://127.0.0.1:8181");
    assert_eq!(read(&uncommented), Config { influxdb: vec![example], ..defaults() });
}

#[test]
fn the_sample_explains_every_key() {
    for section in SECTIONS {
        for key in section.keys {
            assert!(!key.doc.is_empty(), "{} {}", section.title(), key.name);
        }
    }
    for line in sample().lines() {
        assert!(line.chars().count() <= 112, "too long: {line}");
    }
}

#[test]
fn a_fleet() {
    let config = load("valid/fleet.toml").unwrap();
    let s = Duration::from_secs;
    let kvm1 = Hypervisor {
        uri: "qemu+ssh://root@kvm1.example/system".to_owned(),
        name: Some("kvm1".to_owned()),
        interval: s(10),
        deadline: Duration::from_millis(2500),
        max_abandoned: 2,
        balloon_period: s(5),
        older_calls: false,
    };
    let kvm2 = Hypervisor {
        uri: "qemu+tls://kvm2.example/system".to_owned(),
        name: None,
        interval: s(2),
        deadline: s(1),
        max_abandoned: 1,
        balloon_period: s(0),
        older_calls: false,
    };
    assert_eq!(config.hypervisors, [kvm1, kvm2]);
    assert_eq!(config.device_cache_ttl, s(60));
    assert_eq!(config.tag_style, TagStyle::Reference);
    assert_eq!(config.memory_source, MemorySource::Rss);
    assert_eq!(config.angle_scale_kb_per_sec.to_string(), "2048");
    let http = Http {
        listen: Some("[::]:443".parse().unwrap()),
        base_path: "/kvm".to_owned(),
        allowed_hosts: vec!["kvm.example".to_owned(), "fd00::1".to_owned()],
        tls: Some(HttpTls {
            certificate: folder().join("valid/cert.pem"),
            key: PathBuf::from("/etc/ssl/key.pem"),
        }),
        tokens: Some(folder().join("valid/tokens")),
        open_health: true,
        insecure_no_auth: false,
    };
    assert_eq!(config.http, http);
    assert_eq!(config.http.tokens_file(Path::new("/data")), folder().join("valid/tokens"));
    let secure = InfluxDb {
        token_file: Some(folder().join("valid/token")),
        ca: Some(PathBuf::from("/etc/ssl/own-ca.pem")),
        retention: s(90 * 86_400),
        devices_database: Some("devices".to_owned()),
        devices_retention: s(0),
        ..server("https://influx.example:8181")
    };
    let older = InfluxDb {
        api: Api::V2,
        database: "vms".to_owned(),
        org: Some("ops".to_owned()),
        token_file: Some(PathBuf::from("/run/secrets/influx2")),
        ..server("http://10.0.0.9:8086")
    };
    assert_eq!(config.influxdb, [secure, older]);
    assert_eq!(config.journal, Journal { max_size: 512 << 20, max_age: s(7 * 86_400) });
    assert_eq!(
        config.warnings,
        ["http://10.0.0.9:8086 gets its token unencrypted: its url is http, not https"]
    );
}

#[test]
fn one_host_needs_no_tag() {
    let config = load("valid/one-host.toml").unwrap();
    assert!(!config.host_tag);
    assert_eq!(config.influxdb, [InfluxDb { api: Api::V1, ..server("http://[::1]:8086") }]);
}

#[test]
fn hypervisors_from_other_files() {
    let config = load("valid/more.toml").unwrap();
    let found: Vec<_> = config
        .hypervisors
        .iter()
        .map(|one| (one.uri.as_str(), one.name.as_deref(), one.interval.as_secs()))
        .collect();
    let expect = [
        ("qemu:///system", None, 5),
        ("qemu+ssh://root@kvm1.example/system", None, 5),
        ("qemu+ssh://root@kvm2.example/system", Some("kvm2"), 5),
        ("qemu+tls://a.example/system", None, 5),
        ("qemu+tls://b.example/system", None, 30),
    ];
    assert_eq!(found, expect);
}

#[test]
fn invalid_files_say_what_is_wrong() {
    let mut files = 0;
    for entry in std::fs::read_dir(folder().join("invalid")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            files += 1;
            check_invalid(&path);
        }
    }
    assert!(files >= 10, "{files} files");
}

/// The messages of a file are those that it begins with, and no others.
#[track_caller]
fn check_invalid(path: &Path) {
    let text = std::fs::read_to_string(path).unwrap();
    let expected: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("# expect: ")).collect();
    let Err(ConfigError(messages)) = Config::from_parts(Some(path), &[], &Flags::default()) else {
        panic!("{} is taken for valid", path.display());
    };
    let folder = format!("{}/", path.parent().unwrap().display());
    let this = format!("{}:", path.file_name().unwrap().to_string_lossy());
    let found: Vec<_> =
        messages.iter().map(|message| message.replace(&folder, "").replace(&this, "")).collect();
    let same = found.len() == expected.len()
        && found.iter().zip(&expected).all(|(found, expected)| {
            found == expected || (expected.ends_with(": ") && found.starts_with(*expected))
        });
    assert!(same, "{}: expected\n{}\nfound\n{}", path.display(), expected.join("\n"), found.join("\n"));
    assert!(!found.join("\n").contains("secret"), "a message repeats a secret: {found:?}");
    assert!(
        found.iter().all(|message| !message.contains('\n')),
        "a message of more than one line: {found:?}"
    );
}

#[test]
fn the_environment_goes_before_the_file() {
    #[track_caller]
    fn check(variables: &[(&str, &str)], file: Option<&str>, expect: Result<&str, &str>) {
        match (with(variables, &Flags::default(), file), expect) {
            (Ok(config), Ok(expect)) => {
                let one = &config.hypervisors[0];
                let found = format!(
                    "{} {:?} {} {:?}",
                    one.uri,
                    one.interval,
                    config.influxdb.first().map_or("-", |server| &server.url),
                    config.warnings
                );
                assert_eq!(found, expect);
            }
            (Err(error), Err(part)) => assert_eq!(error.to_string(), part),
            (found, expect) => panic!("{found:?} instead of {expect:?}"),
        }
    }
    check(&[("KVMETRY_COLLECT_INTERVAL", "7s")], None, Ok("qemu:///system 7s - []"));
    check(&[("KVMETRY_COLLECT_INTERVAL", "")], None, Ok("qemu:///system 5s - []"));
    check(
        &[("KVMETRY_HYPERVISOR_URI", "test:///default"), ("KVMETRY_INFLUXDB_URL", "http://127.0.0.1:1")],
        None,
        Ok("test:///default 5s http://127.0.0.1:1 []"),
    );
    check(&[("KVMETRY_INFLUXDB_TOKEN", "secret"), ("PATH", "/bin")], None, Ok("qemu:///system 5s - []"));
    check(
        &[("KVMETRY_INFLUX_TOKEN", "x")],
        None,
        Ok(
            r#"qemu:///system 5s - ["KVMETRY_INFLUX_TOKEN is ignored: there is no section \"influx\"; did you mean KVMETRY_INFLUXDB_TOKEN?"]"#,
        ),
    );
    let others = ["SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_HTTP", "PORT", "PORT_80_TCP", "LOG", "TOKEN"];
    for other in others {
        check(&[(&format!("KVMETRY_{other}"), "10")], None, Ok("qemu:///system 5s - []"));
    }
    for (variable, why) in [
        ("DATA_DIR", "the data directory is a flag, --data-dir"),
        ("LISTEN", "did you mean KVMETRY_HTTP_LISTEN?"),
        ("PORTS", "there is no such setting; kvmetry config lists them"),
    ] {
        let variable = format!("KVMETRY_{variable}");
        let told = format!("{variable} is ignored: {why}");
        check(&[(&variable, "x")], None, Ok(&format!("qemu:///system 5s - {:?}", [told])));
    }
    check(
        &[("KVMETRY_COLLECT_INTERVALL", "7s")],
        None,
        Ok(
            r#"qemu:///system 5s - ["KVMETRY_COLLECT_INTERVALL is ignored: unknown key \"intervall\" in [collect]; did you mean \"interval\"?"]"#,
        ),
    );
    check(
        &[("KVMETRY_COLLECT_INTERVAL", "5"), ("KVMETRY_COLLECT_HOST_TAG", "yes")],
        None,
        Err(
            "KVMETRY_COLLECT_INTERVAL: \"5\": not a duration: expected a duration, 1s to 1h, written such as \
             \"500ms\", \"5s\" or \"5m\"\nKVMETRY_COLLECT_HOST_TAG: \"yes\": expected true or false",
        ),
    );
    check(
        &[("KVMETRY_INFLUXDB_DATABASE", "x")],
        Some("valid/fleet.toml"),
        Err("KVMETRY_INFLUXDB_DATABASE: there are 2 [[influxdb]], so this could mean any of them; \
             set database in the file instead"),
    );
    check(
        &[("KVMETRY_HYPERVISOR_NAME", "x")],
        Some("valid/more.toml"),
        Err("KVMETRY_HYPERVISOR_NAME: there are 5 [[hypervisor]], so this could mean any of them; \
             set name in the file instead"),
    );
    check(
        &[("KVMETRY_INFLUXDB_URL", "http://me:secret@a")],
        None,
        Err("KVMETRY_INFLUXDB_URL: url: a user or password does not belong into a URL: it could be read by \
             others; put the token into token_file or KVMETRY_INFLUXDB_TOKEN and remove it here"),
    );
    check(
        &[("KVMETRY_INFLUXDB_URL", "http://me:secret@a\n")],
        None,
        Err("KVMETRY_INFLUXDB_URL: …: a control character (such as a line break) cannot stand here\n\
             KVMETRY_INFLUXDB_URL: [[influxdb]] has no url, for example url = \"http://127.0.0.1:8181\""),
    );
}

#[test]
fn the_port_is_at_a_url_that_can_be_opened() {
    let check = |listen: &str, base_path: &str, is_tls: bool, expect: &str| {
        let tls = is_tls.then(|| HttpTls { certificate: "cert.pem".into(), key: "key.pem".into() });
        let http = Http { base_path: base_path.to_owned(), tls, ..default_http() };
        assert_eq!(http.url(listen.parse().unwrap()), expect);
    };
    check("127.0.0.1:8177", "", false, "http://127.0.0.1:8177");
    check("0.0.0.0:80", "/kvmetry", false, "http://127.0.0.1:80/kvmetry");
    check("[::]:8177", "", true, "https://[::1]:8177");
    check("192.0.2.7:8177", "", true, "https://192.0.2.7:8177");
}

#[test]
fn the_file_of_tokens_has_a_folder() {
    let variables = [("KVMETRY_HTTP_TOKENS".to_owned(), "tokens.json".to_owned())];
    let config = Config::from_parts(None, &variables, &Flags::default()).unwrap();
    let path = config.http.tokens_file(Path::new("data"));
    assert_eq!(path, std::env::current_dir().unwrap().join("tokens.json"));
}

#[test]
fn flags_go_before_everything() {
    let flags = Flags {
        uris: vec!["test:///a".to_owned(), "test:///b".to_owned()],
        interval: Some("3s".to_owned()),
        outputs: vec!["-".to_owned(), "file:lines.lp".to_owned()],
        influxdb: Some("http://127.0.0.1:8181/".to_owned()),
        ..Flags::default()
    };
    let environment = [("KVMETRY_COLLECT_INTERVAL", "7s"), ("KVMETRY_COLLECT_MAX_ABANDONED", "3")];
    let config = with(&environment, &flags, None).unwrap();
    let found: Vec<_> =
        config.hypervisors.iter().map(|one| (one.uri.as_str(), one.interval, one.max_abandoned)).collect();
    let interval = Duration::from_secs(3);
    assert_eq!(found, [("test:///a", interval, 3), ("test:///b", interval, 3)]);
    assert_eq!(config.outputs, [LineOutput::Stdout, LineOutput::File(PathBuf::from("lines.lp"))]);
    assert_eq!(config.influxdb, [server("http://127.0.0.1:8181")]);

    // The file's hypervisors and lists are not read at all; a server of the same address keeps its settings.
    let flags = Flags { influxdb: Some("http://10.0.0.9:8086".to_owned()), interval: None, ..flags };
    let config = with(&[], &flags, Some("valid/fleet.toml")).unwrap();
    assert_eq!(config.hypervisors.len(), 2);
    assert_eq!(config.influxdb.len(), 1);
    assert_eq!(config.influxdb[0].database, "vms");
    let flags = Flags { influxdb: Some("http://10.0.0.10:8086".to_owned()), ..flags };
    let config = with(&[], &flags, Some("valid/fleet.toml")).unwrap();
    assert_eq!(config.influxdb, [server("http://10.0.0.10:8086")]);
}

#[test]
fn the_environment_is_about_what_the_flags_choose() {
    /// The servers with `--influxdb`, and the hypervisors with each `--uri`.
    #[track_caller]
    fn check(file: &str, variables: &[(&str, &str)], uris: &[&str], url: &str, expect: Result<&str, &str>) {
        let flags = Flags {
            uris: uris.iter().map(|uri| (*uri).to_owned()).collect(),
            influxdb: Some(url.to_owned()),
            ..Flags::default()
        };
        let found = with(variables, &flags, Some(file)).map(|config| {
            let servers =
                config.influxdb.iter().map(|one| format!("{} {:?} {}", one.url, one.api, one.database));
            let hosts = config.hypervisors.iter().map(|one| format!("{} {:?}", one.uri, one.name.as_deref()));
            servers.chain(hosts).collect::<Vec<_>>().join(", ")
        });
        assert_eq!(
            found.map_err(|error| error.to_string()),
            expect.map(str::to_owned).map_err(str::to_owned)
        );
    }
    let database = ("KVMETRY_INFLUXDB_DATABASE", "x");
    let api = ("KVMETRY_INFLUXDB_API", "v2");
    let (a, b) = ("http://[::1]:8086", "http://b:1");
    let one = "valid/one-host.toml"; // server a with the API v1
    let system = "qemu:///system None";
    check(one, &[], &[], b, Ok(&format!("{b} V3 kvmetry, {system}")));
    check(one, &[database], &[], b, Ok(&format!("{b} V3 x, {system}")));
    check(one, &[database, api], &[], a, Ok(&format!("{a} V2 x, {system}")));
    // The variable for the URL makes the file's server another one, and the flag means the server that it has become.
    let url = ("KVMETRY_INFLUXDB_URL", b);
    check(one, &[url], &[], b, Ok(&format!("{b} V1 kvmetry, {system}")));
    check(one, &[url, database], &[], a, Ok(&format!("{a} V3 x, {system}")));
    // The file has two of each, the flags choose one.
    let fleet = "valid/fleet.toml";
    let uri = ("KVMETRY_HYPERVISOR_URI", "xen:///");
    let name = ("KVMETRY_HYPERVISOR_NAME", "n");
    let found = format!("{b} V3 x, test:///a Some(\"n\")");
    check(fleet, &[database, uri, name], &["test:///a"], b, Ok(&found));
    let two = ["test:///a", "test:///b"];
    check(fleet, &[uri], &two, b, Ok(&format!("{b} V3 kvmetry, test:///a None, test:///b None")));
    let ambiguous = "KVMETRY_HYPERVISOR_NAME: there are 2 [[hypervisor]], so this could mean any of them; \
                     set name in the file instead";
    check(fleet, &[uri, name], &two, b, Err(ambiguous));
}

#[test]
fn a_token_that_others_could_read_is_warned_of() {
    #[track_caller]
    fn check(servers: &[&str], token: &str, expect: &[&str]) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kvmetry.toml");
        let text: String = servers.iter().map(|server| format!("[[influxdb]]\n{server}\n")).collect();
        std::fs::write(&path, text).unwrap();
        let variables = [(TOKEN_VARIABLE.to_owned(), token.to_owned())];
        let config = Config::from_parts(Some(&path), &variables, &Flags::default()).unwrap();
        assert_eq!(config.warnings, expect);
    }
    let clear = r#"url = "http://a.example:8181""#;
    let near = r#"url = "http://localhost:8181""#;
    let near_too = "url = \"http://localhost:8181\"\ndatabase = \"other\"";
    let secure = r#"url = "https://b.example""#;
    let own = "url = \"https://c.example\"\ntoken_file = \"token\"";
    let unencrypted = "http://a.example:8181 gets its token unencrypted: its url is http, not https";
    check(&[clear], "", &[]);
    check(&[clear], "secret", &[unencrypted]);
    check(&[near, near_too], "secret", &[]);
    check(&[secure, own], "secret", &[]);
    check(&[secure, own, near], "", &[]);
    let shared = "the token of KVMETRY_INFLUXDB_TOKEN goes to each server without token_file: \
                  http://localhost:8181, https://b.example; give each its own token_file";
    check(&[secure, own, near], "secret", &[shared]);
}

#[test]
fn the_http_port_by_environment_and_flags() {
    #[track_caller]
    fn check(variables: &[(&str, &str)], listen: Option<&str>, expect: Result<Option<&str>, &str>) {
        let flags = Flags { listen: listen.map(str::to_owned), insecure_no_auth: true, ..Flags::default() };
        match (with(variables, &flags, None), expect) {
            (Ok(config), Ok(expect)) => {
                let found = config.http.listen.map(|address| address.to_string());
                assert_eq!(found.as_deref(), expect);
                assert!(config.http.insecure_no_auth);
            }
            (Err(error), Err(part)) => assert!(error.to_string().starts_with(part), "{error}"),
            (found, expect) => panic!("{found:?} instead of {expect:?}"),
        }
    }
    let variable = [("KVMETRY_HTTP_LISTEN", "127.0.0.1:1")];
    check(&variable, None, Ok(Some("127.0.0.1:1")));
    check(&variable, Some("10.0.0.1:2"), Ok(Some("10.0.0.1:2")));
    check(&[], Some("localhost:3"), Ok(Some("127.0.0.1:3")));
    check(&[], Some("[::1]:4"), Ok(Some("[::1]:4")));
    check(&[], Some("off"), Ok(None));
    for wrong in ["8177", ":8177", "kvm.example:8177", "localhost", "::1:8177", "127.0.0.1:70000"] {
        check(&[], Some(wrong), Err(&format!("--listen: [http] listen: {wrong:?}: expected an IP address")));
    }
    let hosts = |text: &str| with(&[("KVMETRY_HTTP_ALLOWED_HOSTS", text)], &Flags::default(), None);
    assert_eq!(hosts("a.example, b").unwrap().http.allowed_hosts, ["a.example", "b"]);
    let error = hosts("a,,b").unwrap_err().to_string();
    assert_eq!(error, "KVMETRY_HTTP_ALLOWED_HOSTS: \"a,,b\": an empty text stands in the list");
}

#[test]
fn an_interval_flag_is_for_all_hypervisors() {
    #[track_caller]
    fn check(file: &str, variables: &[(&str, &str)], hypervisors: usize) {
        let flags = Flags { interval: Some("4s".to_owned()), ..Flags::default() };
        let config = with(variables, &flags, Some(file)).unwrap();
        let found: Vec<_> = config.hypervisors.iter().map(|one| one.interval.as_secs()).collect();
        assert_eq!(found, vec![4; hypervisors]);
    }
    check("valid/fleet.toml", &[], 2);
    check("valid/more.toml", &[], 5);
    let environment = [
        ("KVMETRY_COLLECT_INTERVAL", "7s"),
        ("KVMETRY_HYPERVISOR_URI", "test:///a"),
        ("KVMETRY_HYPERVISOR_INTERVAL", "8s"),
    ];
    check("valid/empty.toml", &environment, 1);
}

#[test]
fn the_data_directory_is_the_users_own() {
    #[track_caller]
    fn check(variables: &[(&str, &str)], flag: Option<&str>, expect: &str) {
        let flags = Flags { data_dir: flag.map(PathBuf::from), ..Flags::default() };
        assert_eq!(with(variables, &flags, None).unwrap().data_dir, PathBuf::from(expect));
    }
    let home = ("HOME", "/h/me");
    check(&[home], Some("data"), "data");
    if rustix::process::geteuid().is_root() {
        check(&[home, ("XDG_STATE_HOME", "/state")], None, "/var/lib/kvmetry");
    } else {
        check(&[home], None, "/h/me/.local/state/kvmetry");
        check(&[home, ("XDG_STATE_HOME", "/state")], None, "/state/kvmetry");
        check(&[home, ("XDG_STATE_HOME", "state")], None, "/h/me/.local/state/kvmetry");
        check(&[], None, "/var/lib/kvmetry");
    }
}

#[test]
fn sizes_are_written_with_their_unit() {
    #[track_caller]
    fn check(text: &str, expect: Option<u64>) {
        assert_eq!(keys::parse_size(text), expect, "{text:?}");
    }
    check("2GiB", Some(2 << 30));
    check(" 512 MiB ", Some(512 << 20));
    check("7B", Some(7));
    for text in ["", "GiB", "2", "2GB", "2.5GiB", "-1GiB", "99999999999TiB", "+2GiB"] {
        check(text, None);
    }
    for bytes in [0, 1, 1023, 1024, 1 << 20, 3 << 29, 1 << 40] {
        check(&keys::size(bytes), Some(bytes));
    }
}

#[test]
fn wrong_flags_are_named() {
    #[track_caller]
    fn check(flags: Flags, expect: &str) {
        let error = with(&[], &flags, None).unwrap_err();
        assert!(error.to_string().starts_with(expect), "{error}");
    }
    let flags = Flags::default;
    check(
        Flags { interval: Some("5x".to_owned()), ..flags() },
        "--interval: \"5x\": not a duration: expected a duration, 1s to 1h",
    );
    check(Flags { interval: Some("1ms".to_owned()), ..flags() }, "--interval: \"1ms\": out of range");
    check(
        Flags { uris: vec!["qemu+pigeon:///system".to_owned()], ..flags() },
        "--uri: uri qemu+pigeon:///system: ",
    );
    check(
        Flags { uris: vec!["xen:///".to_owned(), "xen:///".to_owned()], ..flags() },
        "--uri: hypervisor uri \"xen:///\" stands twice, first at --uri",
    );
    check(
        Flags { outputs: vec!["csv:x".to_owned()], ..flags() },
        "--output \"csv:x\": expected - or file:PATH",
    );
    check(
        Flags { outputs: vec!["-".to_owned(), "-".to_owned()], ..flags() },
        "--output \"-\" is given twice",
    );
    check(
        Flags { influxdb: Some("http://a/?token=secret".to_owned()), ..flags() },
        "--influxdb: url: a token or password does not belong into a URL",
    );
    let error = Config::from_parts(Some(Path::new("nowhere.toml")), &[], &flags()).unwrap_err();
    assert_eq!(error.to_string(), "nowhere.toml cannot be read: No such file or directory (os error 2)");
}
