//! `/api/v3/configure/database`.

use super::*;

impl Port {
    async fn create(&self, body: &str) -> Got {
        self.json("POST", DATABASE, body).await
    }

    async fn change(&self, body: &str) -> Got {
        self.json("PUT", DATABASE, body).await
    }
}

#[tokio::test]
async fn create_change_list() {
    let port = Port::open().await;
    port.get(DATABASE).await.is_json(200, json!([]));
    port.create(r#"{"db":"kvm","retention_period":"30d"}"#).await.is_text(200, "");
    port.create(r#"{"db":"all"}"#).await.is_text(200, "");
    let listed = |period: &str| json!([{ "iox::database": "all" }, { "iox::database": "kvm", "retention_period": period }]);
    port.get(&format!("{DATABASE}?format=json")).await.is_json(200, listed("30days"));

    port.change(r#"{"db":"kvm","retention_period":"12h"}"#).await.is_text(200, "");
    port.get(DATABASE).await.is_json(200, listed("12h"));
    for (format, expect) in [
        ("jsonl", "{\"iox::database\":\"all\"}\n{\"iox::database\":\"kvm\",\"retention_period\":\"12h\"}\n"),
        ("csv", "iox::database,retention_period\nall,\nkvm,12h\n"),
        (
            "pretty",
            "+---------------+------------------+\n\
             | iox::database | retention_period |\n\
             +---------------+------------------+\n\
             | all           |                  |\n\
             | kvm           | 12h              |\n\
             +---------------+------------------+\n",
        ),
    ] {
        let got = port.get(&format!("{DATABASE}?format={format}")).await;
        assert_eq!((got.status, got.body.as_str()), (200, expect));
    }
    // Without a period it is as configured again.
    port.change(r#"{"db":"kvm"}"#).await.is_text(200, "");
    port.get(DATABASE).await.is_json(200, json!([{ "iox::database": "all" }, { "iox::database": "kvm" }]));
}

#[tokio::test]
async fn what_is_refused() {
    let port = Port::open().await;
    port.create(r#"{"db":"kvm"}"#).await.is_text(200, "");
    port.create(r#"{"db":"kvm"}"#)
        .await
        .is_error(409, "there is a database \"kvm\" already; PUT changes its retention");
    port.change(r#"{"db":"other"}"#).await.is_error(404, "there is no database \"other\"");
    port.create(r#"{"db":"../x"}"#).await.is_error(400, "the database name");
    for body in ["{}", r#"{"db":""}"#, r#"{"db":null}"#] {
        port.create(body).await.is_error(400, "no database is given");
        port.change(body).await.is_error(400, "no database is given");
    }
    for period in ["", "soon", "59m", "200y", "-1d", "30"] {
        let body = format!(r#"{{"db":"new","retention_period":"{period}"}}"#);
        port.create(&body).await.is_error(400, "expected a duration of 1h to 100 years, such as \"30d\"");
        port.change(&body).await.is_error(400, "expected a duration of 1h to 100 years");
    }
    port.post(DATABASE, r#"{"db":"new"}"#).await.is_error(415, "Content-Type: application/json");
    port.create("db=new").await.is_error(400, "the JSON of the body");
    port.get(&format!("{DATABASE}?format=parquet")).await.is_error(400, "json, jsonl, csv or pretty");
    port.get(&format!("{DATABASE}?format=x")).await.is_error(400, "format \"x\" is not known");
    for (failure, status) in
        [(DatabaseFailure::TooMany("1000".to_owned()), 422), (DatabaseFailure::Failed("EIO".to_owned()), 500)]
    {
        *port.double.databases_fail.lock().unwrap() = Some(failure.clone());
        assert_eq!(port.create(r#"{"db":"new"}"#).await.status, status);
        *port.double.databases_fail.lock().unwrap() = Some(failure);
        assert_eq!(port.get(DATABASE).await.status, status);
    }
    assert_eq!(port.double.databases.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn compaction_and_backup_say_why_not() {
    let port = Port::open().await;
    port.json("POST", COMPACT, "").await.is_text(200, "compacted");
    for (failure, status) in [
        (UpkeepFailure::Running("why".to_owned()), 409),
        (UpkeepFailure::NoRoom("why".to_owned()), 507),
        (UpkeepFailure::Failed("why".to_owned()), 500),
    ] {
        for path in [COMPACT, BACKUP] {
            *port.double.compact_fails.lock().unwrap() = Some(failure.clone());
            let got = port.json("POST", path, "").await;
            assert_eq!(got.status, status);
            assert!(got.body.contains("why"), "{}", got.body);
        }
    }
}
