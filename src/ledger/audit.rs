//! Who decided what about a destination as a whole, and who was shown personal data. What people did to single leads stands with these.

use std::sync::Arc;

use serde::Serialize;
use sqlx::Row as _;
use time::OffsetDateTime;

use super::{Ledger, LedgerError};

/// The command that lifts a hold, as the record has it.
pub const HOLD_LIFT: &str = "hold lift";

/// The newest of both tables. A hold was lifted by `leadpost hold lift`, and so on: people know commands. $1: the destination, $2: how many, $3: of
/// which command.
const NEWEST: &str = "select * from ( \
         (select done_at as at, done_by as by, case kind when 'lift' then 'hold lift' else kind end as command, affected, until, reason \
             from decisions where destination = $1 and ($3::text is null or kind = case $3 when 'hold lift' then 'lift' else $3 end) \
             order by id desc limit $2) \
         union all \
         (select shown_at, shown_to, command, leads, null, reason \
             from disclosures where (destination = $1 or destination is null) and ($3::text is null or command = $3) \
             order by id desc limit $2) \
     ) as newest order by at desc limit $2";

/// What somebody did.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Audited {
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    /// Who.
    pub by: String,
    /// By which command of leadpost.
    pub command: String,
    /// To how many leads; of redactions: attempts.
    pub affected: i64,
    /// Of a lifted hold: when it would have ended. Of a redaction: attempts that began before then.
    #[serde(with = "time::serde::rfc3339::option")]
    pub until: Option<OffsetDateTime>,
    /// Why.
    pub reason: Option<String>,
}

impl Ledger {
    /// What was done last, the newest first; by this command only, if one is named.
    ///
    /// # Errors
    /// That the ledger cannot be read.
    pub async fn audit(&self, command: Option<&str>, limit: u16) -> Result<Vec<Audited>, LedgerError> {
        let ledger = self.clone();
        let command: Option<Arc<str>> = command.map(Into::into);
        self.pool
            .run("read who did what", move |pool| {
                let (ledger, command) = (ledger.clone(), command.clone());
                async move {
                    let rows = sqlx::query(NEWEST)
                        .bind(&*ledger.destination)
                        .bind(i64::from(limit))
                        .bind(command.as_deref())
                        .fetch_all(&pool)
                        .await?;
                    rows.iter()
                        .map(|row| {
                            Ok(Audited {
                                at: row.try_get("at")?,
                                by: row.try_get("by")?,
                                command: row.try_get("command")?,
                                affected: row.try_get("affected")?,
                                until: row.try_get("until")?,
                                reason: row.try_get("reason")?,
                            })
                        })
                        .collect()
                }
            })
            .await
    }
}
