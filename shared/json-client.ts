import { Agent, type buildConnector, request } from 'undici'
import type { Problem } from './api.ts'
import { type ErrorCode, isMusterError, MusterError } from './errors.ts'

export interface JsonClientOptions {
  /** Base URL, `https://host:port`. */
  readonly url: string
  /** PEM of the root that the server must chain to. */
  readonly ca: string
  /** PEM pair for mTLS. */
  readonly certificate?: string
  readonly key?: string
  /** API token, sent as `Authorization: Bearer`. */
  readonly apiToken?: string
  /** Opens connections in place of this client, and proves the server; it may fail with a MusterError of its own. */
  readonly connect?: buildConnector.connector
  /** Hears the Date of each reply (RFC 9110 section 6.6.1), ms since 1970; NaN when there is none. */
  readonly dated?: (date: number) => void
}

type Method = 'GET' | 'POST' | 'PUT' | 'DELETE'

export interface JsonClient {
  readonly url: string
  /**
   * Sends a JSON request and returns the JSON reply.
   * @throws MusterError with the code of the problem document, or `unreachable`; a Retry-After in seconds is in its
   *   evidence as `retryAfterS`
   */
  send<Reply>(method: Method, path: string, body?: unknown, timeoutMs?: number): Promise<Reply>
  /** A reply that stays open, for the change stream; ends with the signal. @throws as `send` */
  stream(path: string, signal: AbortSignal): Promise<AsyncIterable<Uint8Array>>
  close(): Promise<void>
}

/** Longest wait for a reply unless the caller says otherwise, ms. */
const REPLY_DEADLINE_MS = 15_000

export function openJsonClient(options: JsonClientOptions): JsonClient {
  const { ca, certificate: cert, key } = options
  const connect = options.connect ?? { ca, ...(cert && key ? { cert, key } : {}) }
  const agent = new Agent({ connect, bodyTimeout: 0 })
  const headers: Record<string, string> = options.apiToken
    ? { authorization: `Bearer ${options.apiToken}` }
    : {}

  const call = async (method: Method, path: string, body: unknown, signal: AbortSignal) => {
    try {
      return await request(new URL(path, options.url), {
        dispatcher: agent,
        method,
        signal,
        headers: body === undefined ? headers : { ...headers, 'content-type': 'application/json' },
        body: body === undefined ? null : JSON.stringify(body),
      })
    } catch (cause) {
      if (isMusterError(cause)) throw cause
      throw new MusterError('unreachable', `Cannot reach "${options.url}": ${(cause as Error).message}`, {
        cause,
      })
    }
  }

  return {
    url: options.url,
    async send<Reply>(method: Method, path: string, body?: unknown, timeoutMs = REPLY_DEADLINE_MS) {
      const reply = await call(method, path, body, AbortSignal.timeout(timeoutMs))
      options.dated?.(Date.parse(String(reply.headers.date)))
      const text = await reply.body.text()
      if (reply.statusCode >= 400) throw fromProblem(text, reply.statusCode, reply.headers['retry-after'])
      return (text === '' ? undefined : JSON.parse(text)) as Reply // the server's schema says what it is
    },
    async stream(path, signal) {
      const reply = await call('GET', path, undefined, signal)
      if (reply.statusCode >= 400) throw fromProblem(await reply.body.text(), reply.statusCode)
      return reply.body
    },
    close: () => agent.destroy(),
  }
}

/** The error that the server meant: `R-TOKEN-SPENT` is `token_spent` again. */
function fromProblem(text: string, status: number, retryAfter?: string | string[]): MusterError {
  let problem: Partial<Problem> = {}
  try {
    problem = JSON.parse(text) as Partial<Problem>
  } catch {
    // Not ours: a proxy's page, perhaps. The status is all there is.
  }
  const code = problem.code?.replace(/^R-/, '').toLowerCase().replaceAll('-', '_') ?? 'internal'
  const detail = problem.detail ?? `The server answered ${status}.`
  const retry = /^\d{1,6}$/.test(String(retryAfter)) ? { retryAfterS: Number(retryAfter) } : {}
  return new MusterError(code as ErrorCode, detail, { evidence: { ...problem.evidence, ...retry } })
}
