import { hash } from 'node:crypto'

/** A secret that is shown once; `hash` is what is stored, `id` names it in lists and in the audit log. */
export interface NewSecret {
  readonly text: string
  readonly hash: string
  readonly id: string
}

const PREFIX = 'mst_'
const SECRET_OCTETS = 32
const CHECKSUM_CHARACTERS = 6
const FORM = /^mst_[A-Za-z0-9_-]{43}[0-9a-f]{6}$/

/** Makes a token of 256 random bits. `random` returns as many octets as it is asked for. */
export function newToken(random: (octets: number) => Buffer): NewSecret {
  const body = PREFIX + random(SECRET_OCTETS).toString('base64url')
  const text = body + checksum(body)
  return { text, hash: sha256(text), id: `t-${random(5).toString('hex')}` }
}

/**
 * The hash of a token's text, or null when the text cannot be one: the checksum tells a slip of the pen from a
 * token that nobody issued, without asking the registry.
 */
export function parseToken(text: string): { readonly hash: string } | null {
  if (!FORM.test(text)) return null
  const body = text.slice(0, -CHECKSUM_CHARACTERS)
  return text.endsWith(checksum(body)) ? { hash: sha256(text) } : null
}

function checksum(body: string): string {
  return sha256(body).slice(0, CHECKSUM_CHARACTERS)
}

function sha256(text: string): string {
  return hash('sha256', text)
}
