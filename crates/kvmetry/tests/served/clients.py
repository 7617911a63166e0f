"""Other people's clients against a running kvmetry: clients.py NAME ARGUMENT..."""

import sys
from datetime import datetime

import adbc_driver_flightsql.dbapi as adbc
import adbc_driver_manager
import duckdb
import pandas
import pyarrow
import pyarrow.flight as flight
from adbc_driver_flightsql import DatabaseOptions
from influxdb_client_3.exceptions import InfluxDB3ClientError
from influxdb_client_3 import (
    SYNCHRONOUS,
    InfluxDBClient3,
    InfluxDBError,
    Point,
    WriteOptions,
    write_client_options,
)

INFLUXDB_ERRORS = (InfluxDBError, InfluxDB3ClientError)
DATABASE_HEADER = DatabaseOptions.RPC_CALL_HEADER_PREFIX.value + "database"


def expect(found, wanted):
    assert found == wanted, f"{found!r} is not {wanted!r}"


def refusal(kinds, part, call):
    """The call fails with one of these errors, and its message has this part."""
    try:
        call()
    except kinds as error:
        assert part in str(error), f"{part!r} is not in {error}"
    else:
        raise AssertionError(f"it was not refused with {part!r}")


def grpc(url):
    return url.replace("http://", "grpc://")


def influxdb(url):
    """influxdb3-python: lines, points, data frames and batches in; SQL over Flight out."""
    sync = write_client_options(write_options=SYNCHRONOUS)
    client = InfluxDBClient3(host=url, database="py", token="none", write_client_options=sync)
    client.write('vm,VMID=a cpu=1i,mem=2.5 1000000000\nvm,VMID=b cpu=3i,on=true,name="x" 2000000000')
    client.write(Point("vm").tag("VMID", "c").field("cpu", 7).time(3_000_000_000))
    times = pandas.to_datetime([4, 5], unit="s")
    frame = pandas.DataFrame({"VMID": ["d", "e"], "cpu": [1, 2]}, index=times)
    client.write(frame, data_frame_measurement_name="vm", data_frame_tag_columns=["VMID"])

    table = client.query('SELECT * FROM vm ORDER BY time', language="sql")
    types = {field.name: str(field.type) for field in table.schema}
    expect(types, {"VMID": "string", "cpu": "int64", "mem": "double", "name": "string", "on": "bool",
                   "time": "timestamp[ns]"})
    expect(table.column("VMID").to_pylist(), ["a", "b", "c", "d", "e"])
    expect(table.column("cpu").to_pylist(), [1, 3, 7, 1, 2])
    expect(table.column("mem").to_pylist(), [2.5, None, None, None, None])
    expect(table.column("time").cast("int64").to_pylist(), [n * 1_000_000_000 for n in range(1, 6)])

    asked = client.query('SELECT sum(cpu) AS cpu FROM vm WHERE "VMID" > $vm', language="sql", mode="pandas",
                         query_parameters={"vm": "b"})
    expect(asked["cpu"].tolist(), [10])
    nothing = client.query("SELECT cpu, time FROM vm WHERE cpu > 100", mode="pandas")
    expect((list(nothing.columns), len(nothing)), (["cpu", "time"], 0))
    refusal(INFLUXDB_ERRORS, "nix", lambda: client.query("SELECT * FROM nix"))
    refusal(INFLUXDB_ERRORS, "cannot be parsed", lambda: client.query("SELEC 1"))
    refusal(INFLUXDB_ERRORS, "only queries", lambda: client.query("DROP TABLE vm"))
    refusal(INFLUXDB_ERRORS, "ask in SQL", lambda: client.query("SELECT * FROM vm", language="influxql"))
    refusal(INFLUXDB_ERRORS, "database not found", lambda: client.query("SELECT 1", database="nix"))
    # Its two ways to write.
    for v2, part in [(True, "unable to parse"), (False, "line protocol")]:
        refusal(INFLUXDB_ERRORS, part,
                lambda: client.write('vm,VMID=f cpu=9i\nvm,VMID=f cpu="text"', use_v2_api=v2, accept_partial=False))

    failures = []
    batching = write_client_options(write_options=WriteOptions(batch_size=1_000, flush_interval=200),
                                    error_callback=lambda conf, data, error: failures.append(error))
    with InfluxDBClient3(host=url, database="py", token="none", write_client_options=batching) as batched:
        for n in range(20_000):
            batched.write(Point("many").tag("VMID", f"vm{n % 50}").field("n", n).time(1_000_000_000 + n))
    expect(failures, [])
    counted = client.query("SELECT count(*) AS n, sum(n) AS s FROM many").to_pylist()
    expect(counted, [{"n": 20_000, "s": sum(range(20_000))}])
    # More than one message.
    every = client.query('SELECT * FROM many ORDER BY n', mode="pandas")
    expect(every["n"].tolist(), list(range(20_000)))


def flightsql(url):
    """adbc-driver-flightsql: queries, values, catalogs. The points are those that `influxdb` wrote."""
    with adbc.connect(grpc(url), db_kwargs={DATABASE_HEADER: "py"}, autocommit=True) as connection:
        with connection.cursor() as cursor:
            cursor.execute('SELECT "VMID", cpu FROM vm ORDER BY time')
            expect(cursor.fetchall(), [("a", 1), ("b", 3), ("c", 7), ("d", 1), ("e", 2)])
            cursor.execute('SELECT cpu FROM vm WHERE "VMID" = ? AND time < ?', ("b", datetime(2020, 1, 1)))
            expect(cursor.fetchall(), [(3,)])
            cursor.execute('SELECT cpu FROM vm WHERE "VMID" = $2 AND cpu > $1', (1, "c"))
            expect(cursor.fetchall(), [(7,)])
            cursor.execute("SELECT ? || 'it''s ?', ?, ?, ?", ("a", 1.5, True, None))
            expect(cursor.fetchall(), [("ait's ?", 1.5, True, None)])
            cursor.execute("SELECT count(*), max(n) FROM many")
            expect(cursor.fetchall(), [(20_000, 19_999)])
            # What was prepared is asked again with other values.
            for vm, cpu in [("a", 1), ("c", 7)]:
                cursor.execute('SELECT cpu FROM vm WHERE "VMID" = ?', (vm,))
                expect(cursor.fetchall(), [(cpu,)])
            cursor.execute("SHOW TABLES")
            tables = {row[2] for row in cursor.fetchall() if row[1] == "iox"}
            expect(tables, {f"{name}{size}" for name in ("vm", "many") for size in ("", "_1m", "_1h")})
            errors = adbc_driver_manager.Error
            refusal(errors, "only queries", lambda: cursor.execute("DELETE FROM vm"))
            refusal(errors, "nix", lambda: cursor.execute("SELECT nix FROM vm"))
            refusal(errors, "one statement", lambda: cursor.execute("SELECT 1; SELECT 2"))
            rows = pyarrow.table({"a": [1]})
            refusal(errors, "CommandStatementIngest", lambda: cursor.adbc_ingest("vm", rows))
        expect(connection.adbc_get_info()["vendor_name"], "kvmetry")
        expect(connection.adbc_get_table_types(), ["BASE TABLE", "VIEW"])
        expect(connection.adbc_get_table_schema("vm").field("VMID").type, pyarrow.string())
        objects = connection.adbc_get_objects(depth="all", table_name_filter="vm").read_all().to_pylist()
        expect([catalog["catalog_name"] for catalog in objects], ["public"])
        found = {
            schema["db_schema_name"]: {
                table["table_name"]: [column["column_name"] for column in table["table_columns"]]
                for table in schema["db_schema_tables"]
            }
            for schema in objects[0]["catalog_db_schemas"]
        }
        expect(found, {"information_schema": {}, "iox": {"vm": ["VMID", "cpu", "mem", "name", "on", "time"]}})
    # Without a header it is the database that `kvmetry run` writes to, in which there is nothing here.
    with adbc.connect(grpc(url), autocommit=True) as connection, connection.cursor() as cursor:
        refusal(adbc_driver_manager.Error, "vm", lambda: cursor.execute("SELECT * FROM vm"))


def tokens(url, reader, writer):
    """Who may ask over Flight, and what the refusal is."""
    ticket = flight.Ticket(b'{"database":"py","sql_query":"SELECT count(*) AS n FROM vm","query_type":"sql"}')

    def ask(client, *headers):
        options = flight.FlightCallOptions(headers=[(k.encode(), v.encode()) for k, v in headers])
        return client.do_get(ticket, options).read_all().to_pylist()

    with flight.connect(grpc(url)) as client:
        expect(ask(client, ("authorization", f"Bearer {reader}")), [{"n": 5}])
        refusal(flight.FlightUnauthenticatedError, "not authenticated", lambda: ask(client))
        refusal(flight.FlightUnauthenticatedError, "not authenticated",
                lambda: ask(client, ("authorization", f"Bearer {reader}x")))
        refusal(flight.FlightUnauthorizedError, "read",
                lambda: ask(client, ("authorization", f"Bearer {writer}")))
        mine = ("authorization", f"Bearer {reader}")
        refusal(flight.FlightUnauthorizedError, "origin", lambda: ask(client, mine, ("origin", "http://evil")))
        refusal(flight.FlightUnauthorizedError, "origin",
                lambda: ask(client, mine, ("sec-fetch-site", "cross-site")))
        # A name and a password, as Grafana may be told: the password is the token.
        header = client.authenticate_basic_token("any", reader)
        expect(header, (b"authorization", f"Bearer {reader}".encode()))
        refusal(flight.FlightUnauthenticatedError, "not authenticated",
                lambda: client.authenticate_basic_token("any", "wrong"))
    foreign = [("grpc.default_authority", "evil.example")]
    with flight.connect(grpc(url), generic_options=foreign) as client:
        refusal(flight.FlightUnauthorizedError, "not known as",
                lambda: ask(client, ("authorization", f"Bearer {reader}")))
    with adbc.connect(grpc(url), db_kwargs={"username": "any", "password": reader, DATABASE_HEADER: "py"},
                      autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT max(cpu) FROM vm")
        expect(cursor.fetchall(), [(7,)])


def files(pattern, rows, total):
    """DuckDB over the files of a store that was compacted and stopped."""
    found = duckdb.sql(f"SELECT count(*), sum(n), count(DISTINCT time) FROM read_parquet('{pattern}')")
    expect(found.fetchall(), [(int(rows), int(total), int(rows))])
    types = dict(duckdb.sql(f"SELECT column_name, column_type FROM (DESCRIBE SELECT * FROM read_parquet('{pattern}'))").fetchall())
    expect((types["VMID"], types["n"], types["time"]), ("VARCHAR", "BIGINT", "TIMESTAMP_NS"))


{call.__name__: call for call in (influxdb, flightsql, tokens, files)}[sys.argv[1]](*sys.argv[2:])
print("all as expected")
