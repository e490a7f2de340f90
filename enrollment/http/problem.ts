import type { FastifyReply, FastifyRequest } from 'fastify'
import type { Problem } from '#shared/api'
import { type ErrorCode, isMusterError, MusterError } from '#shared/errors'
import type { Log } from '#shared/log'
import { isRefusalErrorCode, REFUSALS, refusalCode } from '#shared/refusals'

/** The one place where meaning becomes an HTTP status. */
export const STATUS = {
  tls: 401,
  nocert: 401,
  unknown_ca: 401,
  profile: 403,
  claim: 403,
  expired: 403,
  notyet: 403,
  unrecorded: 403,
  held: 403,
  revoked: 403,
  superseded: 403,
  pending: 403,
  retired: 403,
  stale: 503,
  idmismatch: 403,
  factor: 403,
  duplicate: 409,
  clone: 403,
  rate: 429,
  policy_pub: 403,
  policy_sub: 403,
  will: 403,
  quota: 429,
  packet: 400,
  token_unknown: 401,
  token_spent: 401,
  token_expired: 401,
  token_cancelled: 401,
  token_batch: 403,
  token_tombstone: 403,
  idevid: 403,
  idevid_unlisted: 403,
  idevid_used: 409,
  id_taken: 409,
  rejected: 403,
  successors: 409,
  csr_malformed: 400,
  csr_key: 422,
  csr_subject: 422,
  csr_pop: 422,
  csr_link: 422,
  server_key: 403,
  invalid_request: 400,
  unauthenticated: 401,
  forbidden: 403,
  not_found: 404,
  conflict: 409,
  too_large: 413,
  unsupported: 415,
  undo_over: 409,
  count_mismatch: 409,
  unavailable: 503,
  unreachable: 502,
  internal: 500,
  config_invalid: 500,
  directory_unusable: 500,
  directory_in_use: 500,
  key_file_insecure: 500,
  passphrase_wrong: 500,
  port_taken: 500,
  clock_wrong: 503,
  lint_failed: 500,
  check_failed: 500,
} as const satisfies Record<ErrorCode, number>

/** What a client is asked to wait after a 503, s. */
const RETRY_AFTER_S = 5

/** What Fastify throws before a route runs, by status. Its own messages may quote the body, and so a secret. */
const FRAMEWORK_ERRORS: Readonly<Record<number, readonly [ErrorCode, string]>> = {
  413: ['too_large', 'Cannot read the request: its body is larger than 64 KiB'],
  415: ['unsupported', 'Cannot read the request: its media type is not accepted here'],
}
const NOT_READABLE = ['invalid_request', 'Cannot read the request: it is not well-formed'] as const

/** Any thrown value as an error that a client may see; what is not for clients becomes `internal`. */
export function asMusterError(thrown: unknown): MusterError {
  if (isMusterError(thrown)) return thrown
  const { statusCode = 500 } = Object(thrown)
  if (statusCode >= 400 && statusCode < 500) {
    const [code, message] = FRAMEWORK_ERRORS[statusCode] ?? NOT_READABLE
    return new MusterError(code, message)
  }
  return new MusterError('internal', 'Cannot answer: something failed inside; the log has the request id', {
    cause: thrown,
  })
}

/** `R-…` for a refusal, the code itself otherwise. */
export function shownCode(code: ErrorCode): string {
  return isRefusalErrorCode(code) ? refusalCode(code) : code
}

/** Headers that go with an error, in the case in which they are sent. */
export function errorHeaders(error: MusterError): Record<string, string> {
  const status = STATUS[error.code]
  const { retryAfterS = RETRY_AFTER_S } = error.evidence
  return status === 429 || status === 503 ? { 'Retry-After': String(retryAfterS) } : {}
}

/** RFC 9457. */
export function problemOf(error: MusterError, requestId: string): Problem {
  const row = isRefusalErrorCode(error.code) ? REFUSALS[refusalCode(error.code)] : null
  return {
    type: 'about:blank',
    title: row?.text ?? error.code.replaceAll('_', ' '),
    status: STATUS[error.code],
    detail: error.message,
    code: shownCode(error.code),
    ...(row ? { fix: row.fix, evidence: error.evidence } : {}),
    requestId,
  }
}

/** Answers with a problem document; what is our own fault is logged with its cause. */
export function sendProblem(
  thrown: unknown,
  at: { request: FastifyRequest; reply: FastifyReply; log: Log },
): FastifyReply {
  const error = asMusterError(thrown)
  const problem = problemOf(error, at.request.id)
  logFault(error, at)
  if (problem.status === 401) at.reply.header('www-authenticate', 'Bearer realm="muster"')
  return at.reply
    .code(problem.status)
    .headers(errorHeaders(error))
    .type('application/problem+json')
    .send(Buffer.from(JSON.stringify(problem))) // octets, to which Fastify adds no charset
}

export function logFault(error: MusterError, at: { request: FastifyRequest; log: Log }): void {
  if (STATUS[error.code] < 500) return
  const { method, id } = at.request
  at.log.error(
    {
      requestId: id,
      method,
      route: at.request.routeOptions.url,
      code: error.code,
      err: error.cause ?? error,
    },
    'request failed',
  )
}
