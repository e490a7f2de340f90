import { promisify } from 'node:util'
import { gzip } from 'node:zlib'
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import { MusterError } from '#shared/errors'
import { pemToDer } from '#shared/pki/pem'
import type { Deps } from '../deps.ts'
import type { PublishedCrl } from '../revocation-list.ts'

/** A CRL may be cached for an hour, a CA certificate for a day, s. */
const CRL_MAX_AGE_S = 3_600
const CA_MAX_AGE_S = 86_400

interface Download {
  readonly body: Buffer
  /** Strong: the content is named by it. */
  readonly etag: string
  readonly type: string
  readonly maxAgeS: number
  /** The body as gzip, where that is worth it. */
  packed?(): Promise<Buffer>
}

/** What certificates point to: CRLs and CA certificates, over plain HTTP, because whoever needs them trusts no TLS yet. */
export function downloads(app: FastifyInstance, deps: Deps): void {
  app.get<{ Params: { file: string } }>('/crl/:file', async (request, reply) =>
    send(reply, { request, download: fullCrl(deps, request.params.file) }),
  )
  app.get<{ Params: { issuer: string; file: string } }>('/crl/:issuer/:file', async (request, reply) =>
    send(reply, { request, download: crlShard(deps, request.params) }),
  )
  app.get<{ Params: { file: string } }>('/ca/:file', async (request, reply) =>
    send(reply, { request, download: caCertificate(deps, request.params.file) }),
  )
}

function fullCrl({ revocationLists }: Deps, file: string): Download {
  const list = file.endsWith('.crl') ? revocationLists.of(file.slice(0, -'.crl'.length)) : null
  if (list === null) throw missing(file)
  return crlDownload(list.published)
}

const SHARD_FILE = /^(0|[1-9]\d{0,3})\.crl$/

function crlShard({ revocationLists }: Deps, of: { issuer: string; file: string }): Download {
  const shard = Number(SHARD_FILE.exec(of.file)?.[1] ?? Number.NaN)
  const list = revocationLists.of(of.issuer)
  if (list === null || !(shard < list.shards)) throw missing(`${of.issuer}/${of.file}`)
  return crlDownload(list.shard(shard))
}

function crlDownload(list: PublishedCrl | null): Download {
  if (!list) throw new MusterError('unavailable', 'Cannot serve the CRL yet')
  return {
    body: list.der,
    etag: `"crl-${list.number}"`,
    type: 'application/pkix-crl', // RFC 2585 section 4.2
    maxAgeS: CRL_MAX_AGE_S,
    packed: () => packed(list),
  }
}

const compress = promisify(gzip)
/** Made when somebody first asks for one, off the event loop, and kept as long as the list. */
const PACKED = new WeakMap<PublishedCrl, Promise<Buffer>>()

function packed(list: PublishedCrl): Promise<Buffer> {
  const made = PACKED.get(list) ?? compress(list.der)
  PACKED.set(list, made)
  return made
}

function caCertificate({ authority }: Deps, file: string): Download {
  const issuer = authority.cas.find((one) => file === `${one.id}.crt`)
  if (!issuer) throw missing(file)
  return {
    body: pemToDer(issuer.pem, 'CERTIFICATE'),
    etag: `"${issuer.id}"`,
    type: 'application/pkix-cert', // RFC 2585 section 4.1
    maxAgeS: CA_MAX_AGE_S,
  }
}

async function send(
  reply: FastifyReply,
  { request, download }: { request: FastifyRequest; download: Download },
) {
  const { body, etag, type, maxAgeS } = download
  const isPacked = download.packed !== undefined && acceptsGzip(request.headers['accept-encoding'])
  // a strong tag names octets, and these are others (RFC 9110 section 8.8.3)
  const tag = isPacked ? etag.replace(/"$/, '-gzip"') : etag
  reply.header('etag', tag).header('cache-control', `public, max-age=${maxAgeS}`)
  if (download.packed) reply.header('vary', 'accept-encoding')
  const known = request.headers['if-none-match']?.split(',').map((one) => one.trim().replace(/^W\//, ''))
  if (known?.includes(tag) || known?.includes('*')) return reply.code(304).send()
  reply.type(type)
  if (!isPacked || !download.packed) return reply.send(body)
  return reply.header('content-encoding', 'gzip').send(await download.packed())
}

/** RFC 9110 section 12.5.3; a weight of 0 is a refusal. */
function acceptsGzip(header: string | string[] | undefined): boolean {
  const codings = String(header ?? '')
    .toLowerCase()
    .split(',')
  return codings.some((coding) => /^\s*(gzip|\*)\s*(;\s*q=(?!0(\.0*)?\s*$)[\d.]+\s*)?$/.test(coding))
}

function missing(file: string): MusterError {
  return new MusterError('not_found', `Cannot serve "${file}": there is no such file`)
}
