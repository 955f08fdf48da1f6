//! A RabbitMQ and a Postgres that speak TLS with those who have a certificate of their authority, and with nobody else.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use sqlx::postgres::PgPoolOptions;
use sqlx::{AssertSqlSafe, PgPool};

use super::authority::{Authority, Issued};
use super::servers::{Server, Servers};

/// Who may log in with a certificate, and not without. Postgres asks for this name in it.
pub const ROLE: &str = "leadpost_secured";

/// What the servers are made with, for all tests of a process.
struct Kit {
    authority: Authority,
    /// Of RabbitMQ, for TLS.
    port: u16,
}

pub struct Secured {
    servers: Servers,
    kit: &'static Kit,
    /// For a look into Postgres, without TLS of its own.
    pub pool: PgPool,
}

impl Secured {
    pub async fn up() -> Self {
        static KIT: OnceLock<Kit> = OnceLock::new();
        let kit = KIT.get_or_init(|| Kit { authority: Authority::new(), port: free_port() });
        let servers = Servers::secured(|folder| rabbitmq(folder, kit)).await;
        let pool = PgPoolOptions::new().max_connections(2).connect_lazy(servers.all()[1].url()).unwrap();
        postgres(&pool, kit).await;
        let secured = Self { servers, kit, pool };
        secured.know_role_to_rabbitmq().await;
        secured
    }

    pub fn authority(&self) -> &'static Authority {
        &self.kit.authority
    }

    pub fn rabbitmq(&self) -> &Server {
        &self.servers.all()[0]
    }

    pub fn postgres(&self) -> &Server {
        &self.servers.all()[1]
    }

    /// RabbitMQ, with TLS, under this name of its host.
    pub fn amqps(&self, host: &str) -> String {
        format!("amqps://guest:guest@{host}:{}/%2f", self.kit.port)
    }

    /// The same for who is known by a certificate, and has no password.
    pub fn amqps_external(&self) -> String {
        format!("amqps://127.0.0.1:{}/%2f?auth_mechanism=external", self.kit.port)
    }

    /// Lets [`ROLE`] into RabbitMQ by its certificate, which needs a plugin, and by no password.
    async fn know_role_to_rabbitmq(&self) {
        let rabbitmq = self.rabbitmq();
        if rabbitmq.ctl(&["list_users"]).await.contains(ROLE) {
            return;
        }
        let enable = "{ok, File} = application:get_env(rabbit, enabled_plugins_file), \
                      ok = file:write_file(File, \"[rabbitmq_auth_mechanism_ssl].\\n\"), rabbit_plugins:ensure(File).";
        rabbitmq.ctl(&["eval", enable]).await;
        rabbitmq.ctl(&["add_user", ROLE, "taken away at once"]).await;
        rabbitmq.ctl(&["clear_password", ROLE]).await;
        rabbitmq.ctl(&["set_permissions", "-p", "/", ROLE, ".*", ".*", ".*"]).await;
    }
}

/// Below the range from which the kernel takes the ports of outgoing connections.
fn free_port() -> u16 {
    let ports = (0..200).map(|_| fastrand::u16(20_000..32_000));
    ports.into_iter().find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok()).unwrap()
}

/// Puts what RabbitMQ needs for TLS into its folder of settings.
fn rabbitmq(folder: &Path, kit: &Kit) {
    let put = |name: &str, content: String| -> PathBuf {
        let path = folder.join(name);
        std::fs::write(&path, content).unwrap();
        path
    };
    let Issued { certificate, key } = kit.authority.server("127.0.0.1", (2000, 2200));
    let settings = format!(
        "listeners.ssl.1 = 127.0.0.1:{}\n\
         ssl_options.cacertfile = {}\n\
         ssl_options.certfile = {}\n\
         ssl_options.keyfile = {}\n\
         ssl_options.verify = verify_peer\n\
         ssl_options.fail_if_no_peer_cert = true\n\
         auth_mechanisms.1 = EXTERNAL\n\
         auth_mechanisms.2 = PLAIN\n\
         ssl_cert_login_from = common_name\n",
        kit.port,
        put("ca.pem", kit.authority.pem()).display(),
        put("server.pem", certificate.pem()).display(),
        put("server.key", key.serialize_pem()).display(),
    );
    put("tls.conf", settings);
}

/// Has Postgres speak TLS, and let [`ROLE`] in by its certificate alone. It writes its files itself, so that they are its own, as it asks of a
/// key.
async fn postgres(pool: &PgPool, kit: &Kit) {
    let execute = async |sql: String| sqlx::query(AssertSqlSafe(sql)).execute(pool).await.unwrap();
    let write = async |name: &str, content: &str| {
        let lines = content.lines().map(|line| format!("('{line}')")).collect::<Vec<_>>().join(", ");
        execute(format!("copy (values {lines}) to program 'umask 077 && cat > {name}'")).await;
    };
    let ready: String = sqlx::query_scalar("show ssl").fetch_one(pool).await.unwrap();
    if ready == "on" {
        return;
    }
    let Issued { certificate, key } = kit.authority.server("127.0.0.1", (2000, 2200));
    write("tls_ca.pem", &kit.authority.pem()).await;
    write("tls_server.pem", &certificate.pem()).await;
    write("tls_server.key", &key.serialize_pem()).await;
    let rules = format!("hostssl all {ROLE} all cert\nhost all {ROLE} all reject\nhost all all all trust");
    write("pg_hba.conf", &rules).await;
    execute(format!("create role {ROLE} superuser login")).await;
    for (name, value) in [
        ("ssl_ca_file", "tls_ca.pem"),
        ("ssl_cert_file", "tls_server.pem"),
        ("ssl_key_file", "tls_server.key"),
        ("ssl", "on"),
    ] {
        execute(format!("alter system set {name} = '{value}'")).await;
    }
    execute("select pg_reload_conf()".to_owned()).await;
    for _ in 0..500 {
        let ready: String = sqlx::query_scalar("show ssl").fetch_one(pool).await.unwrap();
        if ready == "on" {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("Postgres does not speak TLS");
}
