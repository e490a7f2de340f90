import type { Reason } from '#shared/api'
import { MusterError } from '#shared/errors'

/** RFC 5280 section 5.3.1, as far as an operator may give them. */
const REASONS = [
  'unspecified',
  'keyCompromise',
  'affiliationChanged',
  'superseded',
  'cessationOfOperation',
  'privilegeWithdrawn',
] as const satisfies readonly Reason[]

/** @throws MusterError invalid_request */
export function reasonOf(text: string): Reason {
  const reason = REASONS.find((one) => one.toLowerCase() === text.toLowerCase())
  if (reason !== undefined) return reason
  throw new MusterError(
    'invalid_request',
    `Cannot take --reason "${text}": it is one of ${REASONS.join(', ')}`,
  )
}
