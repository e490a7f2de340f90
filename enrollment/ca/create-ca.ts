import { readCertificate } from '#shared/pki/certificate'
import { sha256Hex } from '#shared/pki/keys'
import { derToPem } from '#shared/pki/pem'
import { type Authority, type AuthorityOptions, checkOptions } from './authority.ts'
import { issueCaCertificate } from './ca-certificate.ts'
import {
  beginCreation,
  type CaDirectory,
  type CaFile,
  caDirectory,
  creationState,
  endCreation,
  prepareDirectory,
  readAuthority,
  writeAuthority,
  writeCa,
} from './ca-directory.ts'
import { type MadeKey, makeKey } from './key-access.ts'
import { loadAuthority } from './load-ca.ts'
import type { IssuerKind } from './profile.ts'
import { DEFAULT_CRL_SHARDS } from './shard.ts'
import { keyIdentifier } from './template.ts'

export type { Authority, AuthorityOptions } from './authority.ts'

/**
 * Opens the authority, or creates it when the directory holds none: the caller must hold the plane's lock.
 * A creation that was cut short is begun anew; anything else that is missing or does not fit is refused.
 * @throws MusterError config_invalid (names, or others than it was created with), key_file_insecure, passphrase_wrong,
 *   directory_unusable, clock_wrong
 */
export async function openAuthority(options: AuthorityOptions): Promise<Authority> {
  checkOptions(options)
  const directory = caDirectory(options.directory)
  prepareDirectory(directory)
  const isNew = creationState(directory) !== 'complete'
  if (isNew) await create(directory, options)
  endCreation(directory)
  shardCrl(directory)
  return { ...loadAuthority(directory, options), created: isNew }
}

/**
 * Gives an authority from before there were shards its number of them. What it issued until then names the full CRL,
 * which goes on; what it issues from now on names a shard.
 */
function shardCrl(directory: CaDirectory): void {
  const authority = readAuthority(directory)
  if (authority.crlShards !== undefined) return
  writeAuthority(directory, { ...authority, crlShards: DEFAULT_CRL_SHARDS })
}

interface NewCa extends MadeKey {
  readonly der: Buffer
}

/** Keys and certificates first, authority.json last: from then on the authority exists. */
async function create(directory: CaDirectory, options: AuthorityOptions): Promise<void> {
  const reached = options.reached ?? (() => {})
  beginCreation(directory)
  reached('create-ca.1')
  const root = await makeRoot(options)
  store(directory, { file: 'root', ca: root })
  reached('create-ca.2')
  const device = await makeIssuing('device', { root, options })
  store(directory, { file: 'device-ca', ca: device })
  reached('create-ca.3')
  const infrastructure = await makeIssuing('infrastructure', { root, options })
  store(directory, { file: 'infrastructure-ca', ca: infrastructure })
  reached('create-ca.4')
  writeAuthority(directory, {
    schemaVersion: 1,
    trustDomain: options.trustDomain,
    httpBase: options.httpBase,
    root: sha256Hex(root.der),
    device: sha256Hex(device.der),
    infrastructure: sha256Hex(infrastructure.der),
    crlShards: options.crlShards ?? DEFAULT_CRL_SHARDS,
  })
  reached('create-ca.5')
}

async function makeRoot(options: AuthorityOptions): Promise<NewCa> {
  const { trustDomain, now, lifetimes } = options
  const key = await makeKey(options, options.keys?.root)
  const life = lifetimes && { lifetimeMs: lifetimes.rootMs }
  const request = { kind: 'root', trustDomain, now, spki: key.signer.spki, ...life } as const
  return { ...key, der: await issueCaCertificate(request, key.signer) }
}

async function makeIssuing(
  kind: IssuerKind,
  { root, options }: { root: NewCa; options: AuthorityOptions },
): Promise<NewCa> {
  const { trustDomain, now, httpBase, lifetimes } = options
  const key = await makeKey(options, options.keys?.[kind])
  const life = lifetimes && { lifetimeMs: lifetimes.issuingMs }
  const { tbs } = readCertificate(root.der)
  const der = await issueCaCertificate(
    { kind, trustDomain, now, spki: key.signer.spki, ...life },
    {
      name: tbs.subject.raw,
      keyId: keyIdentifier(tbs.spki.raw),
      notAfter: tbs.notAfter,
      signer: root.signer,
      caUrl: `${httpBase}/ca/${sha256Hex(root.der)}.crt`,
    },
  )
  return { ...key, der }
}

function store(directory: CaDirectory, { file, ca }: { file: CaFile; ca: NewCa }): void {
  writeCa(directory, { ca: file, keyFile: ca.keyFile, pem: derToPem(ca.der, 'CERTIFICATE') })
}
