//! The `export!` macro of `tidemill-sdk`.
//!
//! A procedural macro only because a store's name, a string, has to become the field that holds the
//! store; everything else about a handler is ordinary code in the SDK. No dependencies: the grammar
//! is three levels deep and is parsed by hand.
//!
//! ```text
//! export!(TYPE {
//!     inputs: ["name", ...],            at least one
//!     outputs: ["name", ...],           optional
//!     stores: ["name" { option, ... }], optional; options: prefetch, ordered, schema: N, reads: [N, ...], field: IDENT
//!     config: FIELD,                    optional; the field that takes the deployment's `config`
//!     wants_headers: true,              optional
//! })
//! ```

use proc_macro::{Delimiter, Group, Ident, Literal, Punct, Spacing, Span, TokenStream, TokenTree};
use std::iter::Peekable;

type Tokens = Peekable<proc_macro::token_stream::IntoIter>;

/// Declares a handler: its manifest, how an instance is made, and, for Wasm, its exports.
#[proc_macro]
pub fn export(input: TokenStream) -> TokenStream {
    match Declaration::parse(input) {
        Ok(declaration) => declaration.expand(),
        Err(problem) => problem.into_compile_error(),
    }
}

struct Problem {
    span: Span,
    text: String,
}

impl Problem {
    fn new(span: Span, text: impl Into<String>) -> Problem {
        Problem { span, text: text.into() }
    }

    /// `::core::compile_error! { "text" }`, pointing at the token at fault.
    fn into_compile_error(self) -> TokenStream {
        let at = |mut tree: TokenTree| {
            tree.set_span(self.span);
            tree
        };
        let text = at(Literal::string(&self.text).into());
        [
            at(Ident::new("compile_error", self.span).into()),
            at(Punct::new('!', Spacing::Alone).into()),
            at(Group::new(Delimiter::Brace, text.into()).into()),
        ]
        .into_iter()
        .collect()
    }
}

struct Store {
    /// The literal as written, quotes included.
    name: String,
    field: String,
    schema: String,
    /// Further versions of the values' form that the handler reads, as they were written.
    reads: Vec<String>,
    prefetch: bool,
    ordered: bool,
}

struct Declaration {
    handler: String,
    inputs: Vec<String>,
    outputs: Vec<String>,
    stores: Vec<Store>,
    config: Option<String>,
    wants_headers: bool,
}

impl Declaration {
    fn parse(input: TokenStream) -> Result<Declaration, Problem> {
        let mut tokens = input.into_iter().peekable();
        let mut handler = TokenStream::new();
        let body = loop {
            match tokens.next() {
                Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Brace => break group,
                Some(tree) => handler.extend([tree]),
                None => {
                    return Err(Problem::new(
                        Span::call_site(),
                        "expected `export!(Type { inputs: [..], outputs: [..], stores: [..] })`",
                    ));
                }
            }
        };
        let mut declaration = Declaration {
            handler: handler.to_string(),
            inputs: Vec::new(),
            outputs: Vec::new(),
            stores: Vec::new(),
            config: None,
            wants_headers: false,
        };
        let mut tokens = body.stream().into_iter().peekable();
        while tokens.peek().is_some() {
            declaration.entry(&mut tokens)?;
            comma(&mut tokens)?;
        }
        if declaration.inputs.is_empty() {
            return Err(Problem::new(
                body.span(),
                "a handler needs at least one input: `inputs: [\"name\"]`",
            ));
        }
        Ok(declaration)
    }

    fn entry(&mut self, tokens: &mut Tokens) -> Result<(), Problem> {
        let key = ident(tokens)?;
        punct(tokens, ':')?;
        match key.to_string().as_str() {
            "inputs" => self.inputs = names(tokens)?,
            "outputs" => self.outputs = names(tokens)?,
            "stores" => self.stores = stores(tokens)?,
            "config" => self.config = Some(ident(tokens)?.to_string()),
            "wants_headers" => self.wants_headers = ident(tokens)?.to_string() == "true",
            other => {
                return Err(Problem::new(
                    key.span(),
                    format!(
                        "unknown key `{other}`; there are inputs, outputs, stores, config, wants_headers"
                    ),
                ));
            }
        }
        Ok(())
    }

    fn expand(self) -> TokenStream {
        let handler = &self.handler;
        let mut fields = String::new();
        let mut stores = String::new();
        for (index, store) in self.stores.iter().enumerate() {
            let Store { name, field, schema, prefetch, ordered, .. } = store;
            let reads = store.reads.join(",");
            fields += &format!("{field}: ::tidemill_sdk::guest::store({index}),");
            stores += &format!(
                "::tidemill_sdk::guest::StoreDeclaration {{
                    name: {name},
                    kind: ::tidemill_sdk::guest::kind_of(|handler: &{handler}| &handler.{field}),
                    schema: {schema}, reads: &[{reads}], prefetch: {prefetch}, ordered: {ordered},
                }},"
            );
        }
        let config = match &self.config {
            Some(field) => format!("{field}: ::tidemill_sdk::guest::config(config)?,"),
            None => String::new(),
        };
        let check = match &self.config {
            Some(_) => "",
            None => "::tidemill_sdk::guest::no_config(config)?;",
        };
        let (inputs, outputs) = (self.inputs.join(","), self.outputs.join(","));
        let wants_headers = self.wants_headers;
        let code = format!(
            "const _: () = {{
                impl ::tidemill_sdk::guest::Definition for {handler} {{
                    fn declaration() -> ::tidemill_sdk::guest::Declaration {{
                        const STORES: &[::tidemill_sdk::guest::StoreDeclaration] = &[{stores}];
                        ::tidemill_sdk::guest::Declaration {{
                            inputs: &[{inputs}],
                            outputs: &[{outputs}],
                            stores: STORES,
                            wants_headers: {wants_headers},
                        }}
                    }}
                    fn create(config: &[u8]) -> ::core::result::Result<Self, ::std::string::String> {{
                        {check}
                        Ok({handler} {{ {config} {fields} }})
                    }}
                }}
                // Natively only tests use the handler; this keeps it from being called dead code.
                let _: fn(&[u8]) -> ::core::result::Result<{handler}, ::std::string::String> =
                    <{handler} as ::tidemill_sdk::guest::Definition>::create;
                ::tidemill_sdk::__export_guest!({handler});
            }};"
        );
        code.parse().unwrap_or_else(|_| {
            Problem::new(Span::call_site(), "export! takes a plain type name").into_compile_error()
        })
    }
}

fn ident(tokens: &mut Tokens) -> Result<Ident, Problem> {
    match tokens.next() {
        Some(TokenTree::Ident(ident)) => Ok(ident),
        other => Err(unexpected(other, "a name")),
    }
}

fn punct(tokens: &mut Tokens, expected: char) -> Result<(), Problem> {
    match tokens.next() {
        Some(TokenTree::Punct(punct)) if punct.as_char() == expected => Ok(()),
        other => Err(unexpected(other, &format!("`{expected}`"))),
    }
}

/// A comma, or the end.
fn comma(tokens: &mut Tokens) -> Result<(), Problem> {
    if tokens.peek().is_some() { punct(tokens, ',') } else { Ok(()) }
}

fn unexpected(found: Option<TokenTree>, expected: &str) -> Problem {
    match found {
        Some(tree) => Problem::new(tree.span(), format!("expected {expected}, found `{tree}`")),
        None => Problem::new(Span::call_site(), format!("expected {expected}")),
    }
}

fn bracketed(tokens: &mut Tokens) -> Result<Tokens, Problem> {
    match tokens.next() {
        Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Bracket => {
            Ok(group.stream().into_iter().peekable())
        }
        other => Err(unexpected(other, "a list: `[.., ..]`")),
    }
}

/// A number as written.
fn number(tokens: &mut Tokens) -> Result<String, Problem> {
    match tokens.next() {
        Some(TokenTree::Literal(number)) => Ok(number.to_string()),
        other => Err(unexpected(other, "a number")),
    }
}

/// A name as written, quotes included.
fn name(tokens: &mut Tokens) -> Result<(String, Span), Problem> {
    match tokens.next() {
        Some(TokenTree::Literal(literal)) if literal.to_string().starts_with('"') => {
            Ok((literal.to_string(), literal.span()))
        }
        other => Err(unexpected(other, "a name in quotes")),
    }
}

fn names(tokens: &mut Tokens) -> Result<Vec<String>, Problem> {
    let mut tokens = bracketed(tokens)?;
    let mut names = Vec::new();
    while tokens.peek().is_some() {
        names.push(name(&mut tokens)?.0);
        comma(&mut tokens)?;
    }
    Ok(names)
}

fn stores(tokens: &mut Tokens) -> Result<Vec<Store>, Problem> {
    let mut tokens = bracketed(tokens)?;
    let mut stores = Vec::new();
    while tokens.peek().is_some() {
        let (name, span) = name(&mut tokens)?;
        // A store lives in the field of its name; a hyphen cannot be part of a field's.
        let field = name.trim_matches('"').replace('-', "_");
        let mut store =
            Store { name, field, schema: "1".into(), reads: Vec::new(), prefetch: false, ordered: false };
        if let Some(TokenTree::Group(group)) = tokens.peek()
            && group.delimiter() == Delimiter::Brace
        {
            let mut options = group.stream().into_iter().peekable();
            tokens.next();
            while options.peek().is_some() {
                store_option(&mut store, &mut options)?;
                comma(&mut options)?;
            }
        }
        let plain = store.field.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        if !plain || store.field.starts_with(|c: char| c.is_ascii_digit()) || store.field.is_empty() {
            return Err(Problem::new(span, "this name is no field name; add `{ field: NAME }`"));
        }
        stores.push(store);
        comma(&mut tokens)?;
    }
    Ok(stores)
}

fn store_option(store: &mut Store, options: &mut Tokens) -> Result<(), Problem> {
    let key = ident(options)?;
    match key.to_string().as_str() {
        "prefetch" => store.prefetch = true,
        "ordered" => store.ordered = true,
        "schema" => {
            punct(options, ':')?;
            store.schema = number(options)?;
        }
        "reads" => {
            punct(options, ':')?;
            let mut versions = bracketed(options)?;
            while versions.peek().is_some() {
                store.reads.push(number(&mut versions)?);
                comma(&mut versions)?;
            }
        }
        "field" => {
            punct(options, ':')?;
            store.field = ident(options)?.to_string();
        }
        other => {
            return Err(Problem::new(
                key.span(),
                format!(
                    "unknown option `{other}`; there are prefetch, ordered, schema: N, reads: [N, ..], field: NAME"
                ),
            ));
        }
    }
    Ok(())
}
