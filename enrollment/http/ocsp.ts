import type { IncomingMessage } from 'node:http'
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import { isMusterError, MusterError } from '#shared/errors'
import type { Deps } from '../deps.ts'
import { type Freshness, type KeptReply, type OcspReply, ocspFailure } from '../ocsp.ts'
import { asMusterError, logFault } from './problem.ts'

/** A request for 16 certificates with a nonce takes a fifth of it. */
const BODY_OCTETS = 8 * 1024
/** Caches between us and a client keep an answer so long, s: a hold reaches everybody within this time. */
const MAX_AGE_S = 300

const PATH = '/ocsp'
const TYPE = 'application/ocsp-response'

interface Asked {
  readonly request: FastifyRequest
  readonly reply: FastifyReply
  readonly readings: readonly Buffer[]
}

/**
 * The OCSP responder over plain HTTP (RFC 6960 appendix A, RFC 9919 section 6): responses are signed, and tell no secret.
 * An answer that is kept leaves in the turn of the event loop in which its request came, without a promise.
 */
export function serveOcsp(app: FastifyInstance, deps: Deps): void {
  // the route reads the body itself: Fastify waits for an end of which the length has told already
  app.addContentTypeParser('application/ocsp-request', (_request, payload, done) => done(null, payload))
  const post = (request: FastifyRequest, reply: FastifyReply) => {
    if (request.body !== request.raw) {
      throw new MusterError('unsupported', 'Cannot answer: send application/ocsp-request')
    }
    readBody(request.raw, (body) => {
      try {
        if (body === null) throw tooLong(reply)
        respond(deps, { request, reply, readings: [body] })
      } catch (error) {
        reply.send(error)
      }
    })
  }
  app.post(PATH, post)
  app.post(`${PATH}/`, post)
  app.get(`${PATH}/*`, (request, reply) => {
    respond(deps, { request, reply, readings: readingsOf(request.raw.url ?? '') })
  })
}

/** Calls back once: with the body, as soon as it is whole, or with null as soon as it is too long. */
function readBody(raw: IncomingMessage, taken: (body: Buffer | null) => void): void {
  const declared = Number(raw.headers['content-length']) // NaN of a body in chunks
  if (declared > BODY_OCTETS) {
    taken(null)
    return
  }
  const chunks: Buffer[] = []
  let length = 0
  raw.on('data', (chunk: Buffer) => {
    const wasWithin = length <= BODY_OCTETS
    length += chunk.length
    if (length <= BODY_OCTETS) chunks.push(chunk)
    else if (wasWithin) taken(null)
    if (length === declared) taken(joined(chunks))
  })
  if (declared > 0) return
  raw.on('end', () => {
    if (length <= BODY_OCTETS) taken(joined(chunks))
  })
}

function joined(chunks: readonly Buffer[]): Buffer {
  const [first] = chunks
  return first !== undefined && chunks.length === 1 ? first : Buffer.concat(chunks)
}

/** What is left of the body is not read: the connection ends with the reply. */
function tooLong(reply: FastifyReply): MusterError {
  reply.header('connection', 'close')
  return new MusterError('too_large', 'Cannot answer: an OCSP request has at most 8 KiB')
}

function respond(deps: Deps, asked: Asked): void {
  const { readings, reply } = asked
  const kept = readings[0] && readings.length === 1 ? deps.ocsp.kept(readings[0]) : null
  if (kept) sendKept(asked, kept)
  else sendAnew(deps, asked).catch((error: unknown) => reply.send(error))
}

/** RFC 9919 section 7.2: an authoritative answer never says no-cache or no-store, any other one should. */
const ONCE = 'max-age=0, no-transform, must-revalidate'

async function sendAnew(deps: Deps, asked: Asked): Promise<void> {
  const said = await answer(deps, asked)
  if (said.freshness !== null) sendKept(asked, said)
  else
    asked.reply
      .header('cache-control', said.isAuthoritative ? ONCE : 'no-store')
      .type(TYPE)
      .send(said.der)
}

async function answer({ ocsp, log }: Deps, { request, readings }: Asked): Promise<OcspReply> {
  try {
    return await ocsp.answer(readings)
  } catch (error) {
    logFault(asMusterError(error), { request, log })
    const isPassing = isMusterError(error, 'unavailable') || isMusterError(error, 'clock_wrong')
    return ocspFailure(isPassing ? 'tryLater' : 'internalError')
  }
}

/** Fastify's way would make promises and copies for an answer that has been ready for long. */
function sendKept({ request, reply }: Asked, kept: KeptReply): void {
  if (request.method === 'GET' && request.headers['if-none-match'] === `"${kept.freshness.tag}"`) {
    reply.code(304).headers(cachingHeaders(kept.freshness)).send()
    return
  }
  const { headers, text } = wireFormOf(kept)
  reply.hijack()
  reply.raw.writeHead(200, headers).end(text, 'latin1')
}

interface WireForm {
  /** Names and values by turns, which Node writes as they stand. */
  readonly headers: string[]
  readonly text: string
}

/** Of answers that are kept. */
const WIRE_FORMS = new WeakMap<KeptReply, WireForm>()

/** A body that is text goes out in one write with the headers: a second one would cost as much as all the rest. */
function wireFormOf(kept: KeptReply): WireForm {
  const known = WIRE_FORMS.get(kept)
  if (known) return known
  const type = { 'content-type': TYPE, 'content-length': String(kept.der.length) }
  const headers = Object.entries({ ...type, ...cachingHeaders(kept.freshness) }).flat()
  const form = { headers, text: kept.der.toString('latin1') }
  WIRE_FORMS.set(kept, form)
  return form
}

/** The headers that caches need (RFC 9919 section 7.2). */
function cachingHeaders({ tag, thisUpdate, nextUpdate }: Freshness): Record<string, string> {
  const life = Math.floor((nextUpdate - thisUpdate) / 1000)
  return {
    'cache-control': `max-age=${Math.max(0, Math.min(MAX_AGE_S, life - 1))}, public, no-transform, must-revalidate`,
    'last-modified': new Date(thisUpdate).toUTCString(),
    expires: new Date(nextUpdate).toUTCString(),
    etag: `"${tag}"`,
  }
}

const BASE64 = /^[A-Za-z0-9+/]{8,4096}={0,2}$/
/** So many slashes that were merged into their neighbours are put back, in so many ways. */
const MAX_LOST = 3
const MAX_READINGS = 256

/**
 * The request in the path of a GET: percent-encoded base64. Proxies decode `%2F` and merge `//`; the length that the
 * DER names tells how many slashes are missing, and each may be missing beside any that is left.
 */
export function readingsOf(url: string): Buffer[] {
  const path = (url.split('?', 1)[0] ?? '').slice(PATH.length)
  const text = decoded(path)?.replace(/^\/+/, '') ?? ''
  if (!BASE64.test(text)) return []
  const digits = text.replace(/=+$/, '')
  const missing = base64Length(Buffer.from(digits.slice(0, 8), 'base64')) - digits.length
  if (missing === 0) return [Buffer.from(digits, 'base64')]
  if (missing < 0 || missing > MAX_LOST) return []
  return withSlashes(digits, missing).map((reading) => Buffer.from(reading, 'base64'))
}

function decoded(path: string): string | null {
  try {
    return decodeURIComponent(path)
  } catch {
    return null
  }
}

/** Digits of base64, without padding, for the DER that begins so. */
function base64Length(start: Buffer): number {
  const [, first = 0, second = 0, third = 0] = start
  const octets = first < 0x80 ? 2 + first : first === 0x81 ? 3 + second : 4 + second * 256 + third
  return Math.ceil((octets * 8) / 6)
}

/** Every text with so many more slashes, each beside one that is there. */
function withSlashes(text: string, count: number): string[] {
  let texts = new Set([text])
  for (let round = 0; round < count; round++) {
    const longer = new Set<string>()
    for (const one of texts) {
      for (let at = one.indexOf('/'); at !== -1; at = one.indexOf('/', at + 1)) {
        if (longer.size < MAX_READINGS) longer.add(`${one.slice(0, at)}/${one.slice(at)}`)
      }
    }
    texts = longer
  }
  return [...texts]
}
