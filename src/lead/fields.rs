//! The kinds of fields and what each kind may hold.

/// What a field may hold. Decided by its name; a field without a kind of its own is text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FieldKind {
    /// A person's name: a string, trimmed.
    Name,
    /// An email address by RFC 5321: a string, trimmed.
    Email,
    /// An identifier, as number or string; goes out as it came.
    Id,
    /// A string or a number; goes out as it came.
    Text,
    /// Anything; goes out as it came and is not looked into.
    Any,
}

impl FieldKind {
    /// The kind of the field with this name in the lead APIs that leadpost knows.
    pub fn of(name: &str) -> Self {
        match name {
            "name" | "contact_name" | "first_name" | "last_name" => FieldKind::Name,
            "email" | "assistantEmail" => FieldKind::Email,
            "assistantId" | "scheduleId" | "lead_id" | "affiliate_id" | "custnr" | "contact_api_id" => FieldKind::Id,
            "customFields" => FieldKind::Any,
            _ => FieldKind::Text,
        }
    }
}
