import { existsSync } from 'node:fs'
import { MusterError } from '#shared/errors'
import { readCertificate } from '#shared/pki/certificate'
import { sha256Hex } from '#shared/pki/keys'
import { pemToDer } from '#shared/pki/pem'
import { type AuthorityFile, type CaDirectory, readAuthority, unusable } from './ca-directory.ts'
import type { Issuer } from './issue.ts'
import { issuerOf } from './load-ca.ts'
import { type NextCertificate, nextIssuing, nextRoot, type SigningRoot } from './next-generation.ts'
import type { IssuerKind } from './profile.ts'
import { fileSigner, type Signer } from './signer.ts'

/** A certificate that the registry names, to be opened with the key in the directory. */
export interface Named {
  readonly id: string
  readonly pem: string
}

/** Opens the CAs that rollovers brought. */
export interface GenerationKeys {
  /** @throws MusterError directory_unusable, key_file_insecure, passphrase_wrong */
  issuer(kind: IssuerKind, of: Named): Issuer
  /** Null when the key of the root is not kept here. @throws MusterError directory_unusable, key_file_insecure, passphrase_wrong */
  root(of: Named): SigningRoot | null
  /** Makes the CAs that follow; their keys are on disk when the promise resolves. @throws MusterError conflict (no key of the root) */
  next(
    kind: 'issuing' | 'root',
    of: { root: Named; now: number; lifetimeMs?: number },
  ): Promise<NextCertificate[]>
}

export function openGenerationKeys(directory: CaDirectory, passphrase: string): GenerationKeys {
  const authority: AuthorityFile = readAuthority(directory)
  const open = (path: string, { id, pem }: Named): { der: Buffer; signer: Signer } => {
    const der = pemToDer(pem, 'CERTIFICATE')
    if (sha256Hex(der) !== id)
      throw unusable(directory, `the registry names "${id}" and has another certificate`)
    if (!existsSync(path)) throw unusable(directory, `"${path}" is missing; restore it from the backup`)
    const signer = fileSigner(path, passphrase)
    if (signer.spki.equals(readCertificate(der).tbs.spki.raw)) return { der, signer }
    throw unusable(directory, `the key in "${path}" is another one's`)
  }
  const rootOf = (of: Named): SigningRoot | null => {
    const path = of.id === authority.root ? directory.key('root') : directory.generationKey(of.id)
    return existsSync(path) ? open(path, of) : null
  }
  return {
    issuer: (kind, of) => issuerOf(kind, { ...open(directory.generationKey(of.id), of), authority }),
    root: rootOf,
    async next(kind, { root: named, ...of }) {
      const root = rootOf(named)
      if (!root) {
        throw new MusterError('conflict', 'Cannot make a CA: the key of the root is not kept here')
      }
      const { trustDomain, httpBase } = authority
      const options = { directory, passphrase, trustDomain, httpBase, root, ...of }
      return kind === 'root' ? nextRoot(options) : nextIssuing(options)
    },
  }
}
