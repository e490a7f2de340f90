import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import { isMusterError, MusterError } from '#shared/errors'
import type { Deps } from '../deps.ts'
import { type Freshness, type OcspReply, ocspFailure } from '../ocsp.ts'
import { asMusterError, logFault } from './problem.ts'

/** A request for 16 certificates with a nonce takes a fifth of it. */
const BODY_OCTETS = 8 * 1024
/** Caches between us and a client keep an answer so long, s: a hold reaches everybody within this time. */
const MAX_AGE_S = 300

const PATH = '/ocsp'
const TYPE = 'application/ocsp-response'

/** The OCSP responder over plain HTTP (RFC 6960 appendix A, RFC 9919 section 6): responses are signed, and tell no secret. */
export function serveOcsp(app: FastifyInstance, deps: Deps): void {
  app.addContentTypeParser(
    'application/ocsp-request',
    { parseAs: 'buffer', bodyLimit: BODY_OCTETS },
    (_request, body, done) => done(null, body),
  )
  const post = (request: FastifyRequest, reply: FastifyReply) => {
    const kept = Buffer.isBuffer(request.body) ? deps.ocsp.kept(request.body) : null
    return kept?.freshness ? write(reply, kept, kept.freshness) : postAnew(request, reply)
  }
  const postAnew = async (request: FastifyRequest, reply: FastifyReply) => {
    if (!Buffer.isBuffer(request.body)) {
      throw new MusterError('unsupported', 'Cannot answer: send application/ocsp-request')
    }
    return send(reply, { request, answer: await answer(deps, { request, readings: [request.body] }) })
  }
  app.post(PATH, post)
  app.post(`${PATH}/`, post)
  app.get(`${PATH}/*`, async (request, reply) => {
    const readings = readingsOf(request.raw.url ?? '')
    return send(reply, { request, answer: await answer(deps, { request, readings }) })
  })
}

async function answer(
  { ocsp, log }: Deps,
  { request, readings }: { request: FastifyRequest; readings: readonly Buffer[] },
): Promise<OcspReply> {
  try {
    return await ocsp.answer(readings)
  } catch (error) {
    logFault(asMusterError(error), { request, log })
    const isPassing = isMusterError(error, 'unavailable') || isMusterError(error, 'clock_wrong')
    return ocspFailure(isPassing ? 'tryLater' : 'internalError')
  }
}

function send(reply: FastifyReply, { request, answer }: { request: FastifyRequest; answer: OcspReply }) {
  const { der, freshness } = answer
  if (freshness === null) {
    return reply.header('cache-control', 'no-store').type(TYPE).send(der)
  }
  if (request.method === 'GET' && request.headers['if-none-match'] === `"${freshness.tag}"`) {
    return reply.code(304).headers(cachingHeaders(freshness)).send()
  }
  return write(reply, answer, freshness)
}

/** Fastify's way would make promises and copies for an answer that has been ready for long. */
function write(reply: FastifyReply, answer: OcspReply, freshness: Freshness): FastifyReply {
  const { headers, text } = wireFormOf(answer, freshness)
  reply.hijack()
  reply.raw.writeHead(200, headers).end(text, 'latin1')
  return reply
}

interface WireForm {
  readonly headers: Record<string, string>
  readonly text: string
}

/** Of answers that are kept. */
const WIRE_FORMS = new WeakMap<OcspReply, WireForm>()

/** A body that is text goes out in one write with the headers: a second one would cost as much as all the rest. */
function wireFormOf(reply: OcspReply, freshness: Freshness): WireForm {
  const known = WIRE_FORMS.get(reply)
  if (known) return known
  const type = { 'content-type': TYPE, 'content-length': String(reply.der.length) }
  const form = { headers: { ...type, ...cachingHeaders(freshness) }, text: reply.der.toString('latin1') }
  WIRE_FORMS.set(reply, form)
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
