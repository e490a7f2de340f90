import type { Evidence, RefusalErrorCode } from '#shared/errors'
import type { Report } from '#shared/feed'
import { refusalCode } from '#shared/refusals'

/** Why somebody is turned away, with what was seen. */
export interface Refusal {
  readonly code: RefusalErrorCode
  readonly evidence: Evidence
}

/** Whom a refusal concerns, as far as it is known. */
export interface Refused {
  readonly device: string | null
  readonly fingerprint: string | null
  readonly address: string
}

/** Longest piece of a client's own text in evidence, in characters. */
const SHOWN = 200

/** Text that a client chose, made safe to show: control and invisible characters escaped, cut to {@link SHOWN}. */
export function shown(text: string): string {
  const cut = text.length > SHOWN ? `${text.slice(0, SHOWN)}…` : text
  return cut.replaceAll(
    /[\u{0}-\u{1f}\u{7f}-\u{9f}\u{200b}-\u{200f}\u{2028}-\u{202e}\u{d800}-\u{dfff}\u{feff}\u{fffe}\u{ffff}]/gu,
    (character) => `\\u{${character.codePointAt(0)?.toString(16) ?? ''}}`,
  )
}

/** The report of a refusal; text in its evidence is made safe to show. */
export function refusedReport(refusal: Refusal, refused: Refused, at: number): Report {
  const evidence: Record<string, string | number | boolean> = {}
  for (const [name, value] of Object.entries(refusal.evidence)) {
    evidence[name] = typeof value === 'string' ? shown(value) : value
  }
  const { device, fingerprint, address } = refused
  return { type: 'refused', at, code: refusalCode(refusal.code), evidence, device, fingerprint, address }
}
